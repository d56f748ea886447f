// A comparison of prompts, LoRAs and seeds: one prediction for each combination.

import { useRef, useState } from './vendor/hooks.mjs';
import { ApiError } from './api.js';
import { cancelPrediction, createPrediction, hasEnded, usePrediction, whenEnded } from './predictions.js';
import { Pending, TITLES, useImageUrl } from './stage.js';
import { html } from './ui.js';

const MAX_CELLS = 64;
const IN_FLIGHT = 3;
const RETRY_S = 2;
/** Inputs that the comparison sets for each image. */
export const COMPARED_INPUTS = ['prompt', 'replicate_weights', 'num_outputs', 'seed'];

const lines = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);

/** A LoRA of a line such as `owner/name @ 0.8`; `none` is no LoRA. */
function parseLora(line) {
  if (line === 'none') return { label: 'No LoRA', input: { replicate_weights: '', extra_lora: '' } };
  const match = /^(.*\S)\s+@\s+(-?[\d.]+)$/.exec(line);
  if (!match) return { label: line, input: { replicate_weights: line } };
  return { label: `${match[1]} at ${match[2]}`, input: { replicate_weights: match[1], lora_scale: Number(match[2]) } };
}

/** What is compared until the user sets other texts: the prompt, the LoRA and the seed of the form. */
function initialTexts(input, config) {
  const loras = new Set(['none', input.replicate_weights, ...config.loras].filter(Boolean));
  return {
    prompts: (input.prompt ?? '').replaceAll('\n', ' '),
    loras: [...loras].slice(0, 3).join('\n'),
    seeds: Number.isInteger(input.seed) ? `${input.seed}, ${input.seed + 1}` : '1, 2',
  };
}

function plan(texts, input, hasLoras) {
  const prompts = lines(texts.prompts);
  const loras = hasLoras ? lines(texts.loras).map(parseLora) : [{ label: '', input: {} }];
  const seeds = texts.seeds.split(/[\s,]+/).filter(Boolean).map(Number);
  const rows = prompts.flatMap((prompt) =>
    loras.map((lora, index) => ({
      prompt,
      lora: lora.label,
      isFirst: index === 0,
      span: loras.length,
      inputs: seeds.map((seed) => ({ ...input, ...lora.input, prompt, seed, num_outputs: 1 })),
    })),
  );
  return { rows, seeds, count: rows.length * seeds.length };
}

/** `size` is that of the images, or null. `onStart` calls its argument with the URLs of the input images. */
export function Grid({ model, input, size, config, hasImage, disabled, onStart, onOpen }) {
  const hasLoras = model.fields.some(({ name }) => name === 'replicate_weights');
  const [changed, setChanged] = useState({});
  const texts = { ...initialTexts(input, config), ...changed };
  const [shown, setShown] = useState(null);
  const [cells, setCells] = useState({});
  const [note, setNote] = useState(null);
  const run = useRef(null);
  const planned = plan(texts, input, hasLoras);
  const endedCount = Object.values(cells).filter(({ ended, error }) => ended || error).length;
  const invalid = planned.seeds.some((seed) => !Number.isInteger(seed)) || planned.count === 0 || planned.count > MAX_CELLS;

  const start = async (images) => {
    const queue = planned.rows.flatMap((row, rowIndex) =>
      row.inputs.map((each, column) => [`${rowIndex} ${column}`, { ...each, ...images }]),
    );
    run.current = { queue, running: new Set(), stopped: false };
    setShown({ ...planned, size });
    setCells({});
    setNote(null);
    await Promise.all(Array.from({ length: IN_FLIGHT }, () => work(run.current, model.fullName, setCells, setNote)));
    run.current = null;
    setNote(null);
    setCells((before) => ({ ...before }));
  };
  const stop = () => {
    run.current.stopped = true;
    run.current.queue.length = 0;
    run.current.running.forEach((id) => cancelPrediction(id).catch(() => {}));
  };
  const submit = (event) => {
    event.preventDefault();
    if (!invalid && !disabled && run.current === null) onStart(start);
  };
  const set = (name) => (event) => setChanged({ ...changed, [name]: event.target.value });
  return html`<section class="grid-view" aria-label="Compare">
    <form class="grid-form" onSubmit=${submit}>
      <label class="label">Prompts, one a line<textarea rows="3" value=${texts.prompts} onInput=${set('prompts')} data-test="grid-prompts"></textarea></label>
      ${hasLoras && html`<label class="label">LoRAs, one a line<textarea rows="3" value=${texts.loras} onInput=${set('loras')} spellcheck="false" data-test="grid-loras"></textarea>
        <span class="hint">${'none, or a LoRA with its scale: owner/name @ 0.8'}</span></label>`}
      <label class="label">Seeds<input type="text" value=${texts.seeds} onInput=${set('seeds')} data-test="grid-seeds" /></label>
      <p class="hint">${hasImage ? 'The input image and all other settings are those of the form.' : 'All other settings are those of the form.'}</p>
      <div class="grid-actions">
        ${run.current
          ? html`<span class="muted number" role="status" data-test="grid-progress">${endedCount} of ${shown.count} images</span>
              <button type="button" class="button" onClick=${stop}>Cancel all</button>`
          : html`<button class="button primary" disabled=${invalid || disabled} data-test="grid-run">Generate ${planned.count} ${planned.count === 1 ? 'image' : 'images'}</button>`}
        ${planned.count > MAX_CELLS && html`<span class="field-error">At most ${MAX_CELLS} images; use fewer prompts, LoRAs or seeds.</span>`}
        ${note && html`<span class="muted" role="status">${note}</span>`}
      </div>
    </form>
    ${shown && html`<${Table} planned=${shown} cells=${cells} onOpen=${onOpen} />`}
  </section>`;
}

/** Runs predictions of the queue one after the other until it is empty. */
async function work(run, fullName, setCells, setNote) {
  for (;;) {
    const next = run.queue.shift();
    if (next === undefined) return;
    const [cell, input] = next;
    const update = (value) => setCells((cells) => ({ ...cells, [cell]: value }));
    try {
      const id = await createPrediction(fullName, input);
      run.running.add(id);
      if (run.stopped) await cancelPrediction(id);
      update({ id });
      await whenEnded(id);
      run.running.delete(id);
      update({ id, ended: true });
    } catch (error) {
      if (error instanceof ApiError && error.status === 429 && !run.stopped) {
        run.queue.unshift(next);
        const seconds = Math.max(RETRY_S, error.retryAfterS);
        setNote(`The pool is full; the next request follows in ${seconds} s.`);
        await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
        setNote(null);
      } else update({ error: error.message });
    }
  }
}

function Table({ planned, cells, onOpen }) {
  return html`<div class="table-frame" tabindex="0" role="region" aria-label="Results">
    <table>
      <thead><tr><th scope="col">Prompt</th><th scope="col">LoRA</th>
        ${planned.seeds.map((seed) => html`<th scope="col">Seed ${seed}</th>`)}</tr></thead>
      <tbody>
        ${planned.rows.map(
          (row, rowIndex) => html`<tr key=${rowIndex}>
            ${row.isFirst && html`<th scope="rowgroup" rowspan=${row.span}>${row.prompt}</th>`}
            <th scope="row" class="lora-name">${row.lora}</th>
            ${row.inputs.map((_, column) => html`<td><${Cell} key=${column} cell=${cells[`${rowIndex} ${column}`]} size=${planned.size} onOpen=${onOpen}
              label=${`${row.prompt}, ${row.lora}, seed ${planned.seeds[column]}`} /></td>`)}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

function Cell({ cell, label, size, onOpen }) {
  const state = usePrediction(cell?.id ?? null);
  const src = useImageUrl(state.outputs[0]);
  if (src) return html`<button type="button" class="image-button" onClick=${() => onOpen(cell.id)} aria-label=${`Open ${label}`}><img src=${src} alt=${label} data-test="grid-image" /></button>`;
  return html`<div class="cell" style=${{ aspectRatio: (size ?? [1, 1]).join(' / ') }}>${cellContent(cell, state, label)}</div>`;
}

function cellContent(cell, state, label) {
  if (cell?.error) return html`<p class="field-error">${cell.error}</p>`;
  if (!cell || state.record === null) return null;
  if (hasEnded(state)) return html`<p class="muted">${state.record.error ?? TITLES[state.record.status]}</p>`;
  return html`<${Pending} name=${label} state=${state} index=${0} />`;
}
