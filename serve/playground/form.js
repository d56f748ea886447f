// The form of a served model: its groups of inputs, and the input image.

import { useEffect, useRef, useState } from './vendor/hooks.mjs';
import { Field } from './fields.js';
import { createCanvas, drawCrop } from './image.js';
import { coverage, drawMask } from './mask.js';
import { valueOf } from './schema.js';
import { html, IconButton } from './ui.js';

const ALWAYS_OPEN = ['prompt'];
const OPEN_AT_FIRST = ['size', 'model'];
/** The width at which the style sheet shows the form above the result. */
const NARROW = '(max-width: 860px)';
/** Inputs of the shape, which an input image decides. */
const SIZE_INPUTS = ['aspect_ratio', 'width', 'height'];

/** `size` is that of the images, or null; `hidden` has the names of inputs that are not shown. */
export function Form({ model, values, errors, config, source, mask, size, hidden, onValue, onFile, onEdit, onRemoveImage }) {
  const hasImage = source !== null || Boolean(values.image);
  const isDecided = ({ name }) => hasImage && SIZE_INPUTS.includes(name);
  const fieldProps = (field) => ({
    key: field.name,
    field,
    value: values[field.name],
    error: errors[field.name],
    suggestions: config.loras,
    disabled: isDecided(field),
    note: isDecided(field) && 'The images have the shape of the input image.',
    onChange: (value) => onValue(field.name, value),
  });
  const isShown = ({ name }) => {
    if (name === 'width' || name === 'height') return valueOf(model, values, 'aspect_ratio') === 'custom' || errors[name];
    if (name === 'mask' || hidden.includes(name)) return false;
    if (name === 'prompt_strength') return hasImage || errors[name];
    return true;
  };
  return model.groups.map((group) => {
    const fields = group.fields.filter(isShown);
    if (fields.length === 0) return null;
    const content = fields.map((field) =>
      field.kind === 'image'
        ? html`<${ImageField} key=${field.name} error=${errors.image || errors.mask} source=${source} mask=${mask}
            url=${values.image} size=${size} onFile=${onFile} onEdit=${onEdit}
            onRemove=${onRemoveImage} onUrl=${(url) => onValue('image', url)} />`
        : html`<${Field} ...${fieldProps(field)} />`,
    );
    if (ALWAYS_OPEN.includes(group.id))
      return html`<div class="group" key=${group.id}>${content}
        ${(!values.prompt || config.examples.includes(values.prompt)) &&
        html`<div class="chips">${config.examples.map(
          (example) => html`<button type="button" class="chip" onClick=${() => onValue('prompt', example)}>${example}</button>`,
        )}</div>`}
      </div>`;
    return html`<${Group} key=${`${group.id} ${model.fullName}`} group=${group} summary=${summary(group, model, values, size, source, mask)}
      forced=${group.fields.some(({ name }) => errors[name])}>${content}<//>`;
  });
}

function Group({ group, summary: text, forced, children }) {
  const [open, setOpen] = useState(() => OPEN_AT_FIRST.includes(group.id) && !matchMedia(NARROW).matches);
  useEffect(() => {
    if (forced) setOpen(true);
  }, [forced]);
  return html`<details class="group" id=${`group-${group.id}`} open=${open} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary><span>${group.title}</span><span class="summary-text">${text}</span></summary>
    <div class="group-content">${children}</div>
  </details>`;
}

/** What a closed group contains. */
function summary({ id, fields }, model, values, size, source, mask) {
  const value = (name) => valueOf(model, values, name);
  switch (id) {
    case 'size':
      return size ? `${size[0]} × ${size[1]}` : '';
    case 'model':
      return `${value('model')}, ${value('num_inference_steps')} steps`;
    case 'loras': {
      const count = ['replicate_weights', 'extra_lora'].filter((name) => value(name)).length;
      return count === 0 ? 'None' : String(count);
    }
    case 'image':
      return source || values.image ? (coverage(mask) > 0 ? 'Image with mask' : 'Image') : 'None';
    default: {
      const changed = fields.filter(({ name, default: standard }) => (values[name] ?? standard) !== standard).length;
      return changed === 0 ? '' : `${changed} changed`;
    }
  }
}

function ImageField({ source, mask, url, error, size, onFile, onEdit, onRemove, onUrl }) {
  return html`<div class=${`field kind-image${error ? ' has-error' : ''}`} data-field="image">
    ${source
      ? html`<${Thumbnail} source=${source} mask=${mask} size=${size} onEdit=${onEdit} onRemove=${onRemove} />`
      : html`<label class="drop-zone">
            <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 16V5m0 0L8 9m4-4l4 4M5 20h14" /></svg>
            <span><b>Choose an image</b>, drop or paste one</span>
            <input id="input-image" class="visually-hidden" type="file" accept="image/*" data-test="image-file"
              aria-describedby=${error ? 'input-image-error' : undefined}
              onChange=${(event) => event.target.files[0] && onFile(event.target.files[0])} />
          </label>
          <input type="url" value=${url ?? ''} placeholder="or its address: https://…" aria-label="Address of an image"
            aria-invalid=${String(Boolean(error))} onInput=${(event) => onUrl(event.target.value || undefined)} />`}
    ${error && html`<p class="field-error" id="input-image-error">${error}</p>`}
  </div>`;
}

function Thumbnail({ source, mask, size, onEdit, onRemove }) {
  const canvas = useRef();
  useEffect(() => {
    drawCrop(source, size, canvas.current);
    if (coverage(mask) === 0) return;
    const context = canvas.current.getContext('2d');
    context.globalAlpha = 0.55;
    context.drawImage(drawMask(mask, size, createCanvas(...size)), 0, 0);
  }, [source, mask, ...size]);
  return html`<div class="thumbnail">
    <canvas ref=${canvas} role="img" aria-label=${`Input image ${source.name}`}></canvas>
    <div class="thumbnail-actions">
      <${IconButton} icon="brush" text="Crop and mask" label="Crop and mask" onClick=${onEdit} />
      <${IconButton} icon="trash" label="Remove the image" onClick=${onRemove} />
      <span class="hint">${size[0]} × ${size[1]}</span>
    </div>
  </div>`;
}

/** Focuses the control of an input, after its group has been opened. */
export function focusField(name) {
  setTimeout(() => {
    const field = document.querySelector(`[data-field="${name === 'mask' ? 'image' : name}"]`);
    field?.closest('details')?.setAttribute('open', '');
    const control = field?.querySelector('input:not(.visually-hidden), textarea, select, button');
    control?.focus();
    field?.scrollIntoView({ block: 'center' });
  }, 50);
}
