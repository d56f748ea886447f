// One control of the form for each kind of input.

import { useState } from './vendor/hooks.mjs';
import { uploadFile } from './api.js';
import { html, Icon, IconButton } from './ui.js';

const MAX_SEGMENTS = 4;

/** `value` is undefined while the default applies; `onChange` takes a value as the API does. */
export function Field({ field, value, error, note, disabled, suggestions, onChange }) {
  const id = `input-${field.name}`;
  const described = [`${id}-description`, error && `${id}-error`].filter(Boolean).join(' ');
  const shown = value ?? field.default;
  const props = { id, field, shown, disabled, suggestions, onChange, described, invalid: Boolean(error) };
  const Control = CONTROLS[controlOf(field)] ?? Text;
  const isGroup = ['ratio', 'segments'].includes(controlOf(field));
  return html`<div class=${`field kind-${controlOf(field)}${error ? ' has-error' : ''}`} data-field=${field.name}>
    <div class="field-head">
      ${isGroup
        ? html`<span class="label" id=${`${id}-label`}>${field.label}</span>`
        : html`<label class="label" for=${id} id=${`${id}-label`}>${field.label}</label>`}
      ${controlOf(field) === 'number' &&
      html`<input class="number-box" type="number" inputmode="decimal" value=${shown ?? ''} disabled=${disabled}
        min=${field.minimum} max=${field.maximum} step=${field.integer ? 1 : 'any'} aria-invalid=${String(Boolean(error))}
        aria-labelledby=${`${id}-label`} aria-describedby=${described} data-test=${`number-${field.name}`}
        onInput=${(event) => onChange(toNumber(event.target.value))} />`}
    </div>
    <${Control} ...${props} />
    <p class=${field.kind === 'prompt' ? 'visually-hidden' : 'description'} id=${`${id}-description`}>${note || plainText(field.description)}</p>
    ${error && html`<p class="field-error" id=${`${id}-error`}>${error}</p>`}
  </div>`;
}

function controlOf(field) {
  if (field.kind !== 'choice') return field.kind;
  if (field.options.some((option) => /^\d+:\d+$/.test(option))) return 'ratio';
  return field.options.length <= MAX_SEGMENTS ? 'segments' : 'select';
}

/** Texts that are not numbers are sent as they are, so that the service explains the error. */
function toNumber(text) {
  if (text.trim() === '') return undefined;
  return Number.isFinite(Number(text)) ? Number(text) : text;
}

const plainText = (description) => description.replaceAll('`', '');

function PromptInput({ id, shown, described, invalid, onChange }) {
  return html`<textarea id=${id} rows="4" value=${shown ?? ''} aria-describedby=${described} aria-invalid=${String(invalid)}
    placeholder="A red sailboat" onInput=${(event) => onChange(event.target.value)}></textarea>`;
}

function Text({ id, shown, described, invalid, disabled, onChange }) {
  return html`<input id=${id} type="text" value=${shown ?? ''} disabled=${disabled} aria-describedby=${described}
    aria-invalid=${String(invalid)} onInput=${(event) => onChange(event.target.value)} />`;
}

function LoraInput({ id, field, shown, described, invalid, suggestions, onChange }) {
  const [note, setNote] = useState(null);
  const upload = async (input) => {
    const [file] = input.files;
    input.value = '';
    setNote(`Uploading ${file.name}`);
    try {
      onChange(await uploadFile(file, file.name));
      setNote(`${file.name} is uploaded`);
    } catch (error) {
      setNote(`${file.name} was not uploaded: ${error.message}`);
    }
  };
  return html`<div class="with-button">
    <input id=${id} type="text" value=${shown ?? ''} list=${`${id}-list`} autocomplete="off" spellcheck="false"
      placeholder="None" aria-describedby=${described} aria-invalid=${String(invalid)}
      onInput=${(event) => onChange(event.target.value)} />
    ${shown && html`<${IconButton} icon="close" label="Remove the LoRA" onClick=${() => onChange('')} />`}
    <label class="button quiet icon-only" title="Upload a LoRA file">
      <span class="visually-hidden">Upload a LoRA file</span><${Icon} name="upload" />
      <input class="visually-hidden" type="file" accept=".safetensors,.tar,.tgz,.gz,.zip" data-test=${`file-${field.name}`}
        onChange=${(event) => event.target.files[0] && upload(event.target)} />
    </label>
    <datalist id=${`${id}-list`}>${suggestions.map((each) => html`<option value=${each} />`)}</datalist>
  </div>
  ${note && html`<p class="hint" role="status">${note}</p>`}
  ${!shown && suggestions.length > 0 &&
  html`<div class="chips">${suggestions.slice(0, 6).map(
    (each) => html`<button type="button" class="chip" onClick=${() => onChange(each)}>${each}</button>`,
  )}</div>`}`;
}

function NumberInput({ id, field, shown, disabled, described, invalid, onChange }) {
  if (field.minimum === undefined || field.maximum === undefined) return null;
  const step = field.integer ? 1 : (field.maximum - field.minimum) / 100;
  return html`<input id=${id} type="range" min=${field.minimum} max=${field.maximum} step=${step} disabled=${disabled}
    value=${shown ?? field.minimum} aria-describedby=${described} aria-invalid=${String(invalid)}
    onInput=${(event) => onChange(roundTo(Number(event.target.value), 4))} />`;
}

const roundTo = (value, digits) => Number(value.toFixed(digits));

function SeedInput({ id, shown, described, invalid, onChange }) {
  const random = () => onChange(crypto.getRandomValues(new Uint32Array(1))[0]);
  return html`<div class="with-button">
    <input id=${id} type="number" step="1" value=${shown ?? ''} placeholder="Random" aria-describedby=${described}
      aria-invalid=${String(invalid)} onInput=${(event) => onChange(toNumber(event.target.value))} />
    <${IconButton} icon="dice" label="New random seed" onClick=${random} />
    ${shown !== undefined && html`<${IconButton} icon="close" label="Random seed each time" onClick=${() => onChange(undefined)} />`}
  </div>`;
}

function Switch({ id, shown, disabled, described, onChange }) {
  return html`<input id=${id} type="checkbox" role="switch" class="switch" checked=${Boolean(shown)} disabled=${disabled}
    aria-describedby=${described} onChange=${(event) => onChange(event.target.checked)} />`;
}

function Select({ id, field, shown, disabled, described, invalid, onChange }) {
  return html`<select id=${id} value=${shown} disabled=${disabled} aria-describedby=${described} aria-invalid=${String(invalid)}
    onChange=${(event) => onChange(event.target.value)}>
    ${field.options.map((option) => html`<option value=${option}>${option}</option>`)}
  </select>`;
}

function Choices({ className, id, field, shown, disabled, described, onChange, render }) {
  return html`<div class=${className} role="radiogroup" id=${id} aria-labelledby=${`${id}-label`} aria-describedby=${described}>
    ${field.options.map(
      (option) => html`<label class="choice">
        <input type="radio" name=${id} value=${option} checked=${option === shown} disabled=${disabled}
          onChange=${() => onChange(option)} />
        <span>${render(option)}</span>
      </label>`,
    )}
  </div>`;
}

const Segments = (props) => html`<${Choices} ...${props} className="segments" render=${(option) => option} />`;
const Ratio = (props) => html`<${Choices} ...${props} className="ratios" render=${renderRatio} />`;

function renderRatio(option) {
  const [width, height] = (/^\d+:\d+$/.test(option) ? option : '1:1').split(':').map(Number);
  const scale = 16 / Math.max(width, height);
  const size = [width * scale, height * scale];
  return html`<svg class="shape" viewBox="0 0 20 20" aria-hidden="true">
      <rect x=${10 - size[0] / 2} y=${10 - size[1] / 2} width=${size[0]} height=${size[1]} rx="1.5"
        class=${option === 'custom' ? 'dashed' : ''} />
    </svg>${option}`;
}

const CONTROLS = {
  prompt: PromptInput,
  text: Text,
  lora: LoraInput,
  number: NumberInput,
  seed: SeedInput,
  switch: Switch,
  select: Select,
  segments: Segments,
  ratio: Ratio,
};
