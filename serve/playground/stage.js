// The result: the images of one prediction with their progress, its state, and what can be done with them.

import { useEffect, useState } from './vendor/hooks.mjs';
import { linkUrl, ownPath, readBlob } from './api.js';
import { hasEnded, withheldImages } from './predictions.js';
import { copyText, formatSeconds, html, IconButton } from './ui.js';

const COLD_START_AFTER_S = 6;
const GONE = html`<p>This prediction has been removed: the service keeps images for a limited time.</p>`;

/** The URL that an `img` shows: without a request for `data:` URIs, and with the token for other ones. */
export function useImageUrl(uri) {
  const direct = uri === undefined ? undefined : uri.startsWith('data:') ? uri : linkUrl(uri);
  const [read, setRead] = useState(null);
  useEffect(() => {
    if (direct !== null) return undefined;
    let created = null;
    let dropped = false;
    readBlob(uri).then(
      (blob) => {
        if (dropped) return;
        created = URL.createObjectURL(blob);
        setRead({ uri, url: created });
      },
      () => {},
    );
    return () => {
      dropped = true;
      URL.revokeObjectURL(created);
    };
  }, [uri]);
  // After a change of `uri`, the state is that of the previous one until the next image was read.
  return direct ?? (uri !== undefined && read?.uri === uri ? read.url : undefined);
}

export function imageCount(record) {
  return Number(record?.input?.num_outputs ?? 1);
}

export function Stage({ state, actions, aspect }) {
  const { record } = state;
  const compare = useImageUrl(ownImage(record));
  const [zoomed, setZoomed] = useState(null);
  if (record === null) return html`<div class="stage-empty">${state.missing ? GONE : html`<${EmptyState} />`}</div>`;
  if (state.missing) return html`<div class="stage-empty">${GONE}</div>`;
  const count = imageCount(record);
  const withheld = withheldImages(record.logs);
  return html`<div class="result">
    <${Status} state=${state} onCancel=${() => actions.cancel(record.id)} />
    ${record.status === 'failed' && html`<p class="failure" role="alert">${record.error}</p>`}
    ${(record.status !== 'failed' || state.outputs.length > 0) &&
    html`<div class=${`tiles count-${count}`}>
      ${Array.from({ length: count }, (_, index) =>
        html`<${Tile} key=${`${record.id} ${index}`} index=${index} state=${state} aspect=${aspect} withheld=${withheld.has(index)}
          actions=${actions} onZoom=${setZoomed} compare=${compare} single=${count === 1} />`,
      )}
    </div>`}
    <${Details} state=${state} actions=${actions} />
    ${zoomed && html`<${Lightbox} src=${zoomed} onClose=${() => setZoomed(null)} />`}
  </div>`;
}

/** The input image, if it is a file or an output of this service. */
function ownImage(record) {
  const uri = record?.input?.image;
  return typeof uri === 'string' && ownPath(uri) !== null ? uri : undefined;
}

function EmptyState() {
  return html`<div class="empty">
    <svg viewBox="0 0 120 90" aria-hidden="true"><rect x="8" y="8" width="104" height="74" rx="6" /><circle cx="38" cy="34" r="8" /><path d="M8 70l30-24 20 15 24-24 30 26" /></svg>
    <h2>Nothing here yet</h2>
    <p>Describe an image and press <b>Generate</b>, or <kbd>Ctrl</kbd> <kbd>Enter</kbd> in the prompt.</p>
  </div>`;
}

function useElapsedS({ record, createdMs }, ended) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (ended) return undefined;
    const timer = setInterval(() => setNow(Date.now()), 250);
    return () => clearInterval(timer);
  }, [record.id, ended]);
  return Math.max(0, (now - (createdMs ?? Date.parse(record.created_at))) / 1000);
}

export const TITLES = { succeeded: 'Done', failed: 'Failed', canceled: 'Canceled', processing: 'Generating', starting: 'Waiting' };

function Status({ state, onCancel }) {
  const { record, ahead } = state;
  const ended = hasEnded(state);
  const elapsedS = useElapsedS(state, ended);
  const seconds = ended ? record.metrics.total_time : elapsedS;
  const waits = record.status === 'starting';
  return html`<div class=${`status is-${record.status}`}>
    <span class="status-dot" aria-hidden="true"></span>
    <span role="status" data-test="status">${TITLES[record.status]}</span>
    ${seconds !== undefined && html`<span class="muted number">${formatSeconds(seconds)}</span>`}
    ${waits && ahead > 0 && html`<span class="muted">${ahead} ahead in the queue</span>`}
    ${waits && !ahead && elapsedS > COLD_START_AFTER_S &&
    html`<span class="muted">Waiting for a replica. A pool that was idle may take minutes to start.</span>`}
    <span class="spacer"></span>
    ${!ended && html`<button type="button" class="button" data-test="cancel" onClick=${onCancel}>Cancel</button>`}
  </div>`;
}

function Tile({ index, state, aspect, withheld, actions, onZoom, compare, single }) {
  const uri = state.outputs[index];
  const src = useImageUrl(uri);
  const [comparing, setComparing] = useState(false);
  const { record } = state;
  const name = `Image ${index + 1}`;
  const [width, height] = aspect ?? [1, 1];
  if (uri === undefined)
    return html`<figure class="tile" style=${{ aspectRatio: `${width} / ${height}` }}>
      <${Pending} name=${name} state=${state} index=${index} withheld=${withheld} />
    </figure>`;
  return html`<figure class=${`tile done${comparing ? ' comparing' : ''}`}>
    ${comparing && compare
      ? html`<${Compare} before=${compare} after=${src} />`
      : html`<button type="button" class="image-button" aria-label=${`${name}: show larger`} onClick=${() => onZoom(src)}>
          <img src=${src} alt=${`${name}: ${record.input.prompt ?? ''}`} data-test="output" />
        </button>`}
    <figcaption class="tile-actions" aria-label=${`Actions for ${name}`}>
      ${compare && html`<${IconButton} icon="compare" text=${single ? 'Compare' : undefined} label="Compare with the input image" pressed=${comparing} onClick=${() => setComparing(!comparing)} />`}
      <${IconButton} icon="moreImages" text=${single ? 'Variations' : undefined} label="Variations: the same settings with the next seeds" onClick=${() => actions.vary(record, index)} />
      <${IconButton} icon="edit" text=${single ? 'Edit' : undefined} label="Edit: use as the input image" onClick=${() => actions.edit(uri, `image ${index + 1}`)} />
      <${IconButton} icon="swap" text=${single ? 'Other LoRA' : undefined} label="Same seed, other LoRA" onClick=${() => actions.otherLora(record, index)} />
      <span class="spacer"></span>
      <a class="button quiet icon-only" href=${src} download=${fileName(record, index, uri)} aria-label="Download" title="Download">
        <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4v11m0 0l-4-4m4 4l4-4M5 20h14" /></svg>
      </a>
    </figcaption>
  </figure>`;
}

function fileName(record, index, uri) {
  const type = uri.startsWith('data:') ? /^data:image\/(\w+)/.exec(uri)?.[1] : /\.(\w+)(?:\?|$)/.exec(uri)?.[1];
  return `${record.id}-${index}.${(type ?? 'webp').replace('jpeg', 'jpg')}`;
}

/** One image of a prediction before it is there: its progress and its newest preview. */
export function Pending({ name, state, index, withheld = false }) {
  const [progress, preview] = [state.progress[index], state.previews[index]];
  if (withheld)
    return html`<div class="pending"><p data-test="withheld">${name} was withheld: the safety checker flagged it.</p></div>`;
  if (hasEnded(state)) return html`<div class="pending"><p>${state.record.status === 'canceled' ? 'Canceled' : 'No image'}</p></div>`;
  const share = progress ? progress.step / progress.total : 0;
  const text = progress
    ? progress.step === progress.total ? 'Decoding' : `Step ${progress.step} of ${progress.total}`
    : 'Waiting';
  return html`<div class=${`pending${preview ? ' with-preview' : ''}`}>
    ${preview && html`<img src=${preview} alt=${`${name}: preview`} data-test="preview" />`}
    <div class="progress" role="progressbar" aria-label=${name} aria-valuemin="0" aria-valuemax="100"
      aria-valuenow=${Math.round(share * 100)} aria-valuetext=${text}>
      <div class="progress-bar" style=${{ transform: `scaleX(${share})` }}></div>
    </div>
    <span class="muted number" data-test="progress">${text}</span>
  </div>`;
}

/** The input image and the result, one over the other, divided by a slider. */
function Compare({ before, after }) {
  const [share, setShare] = useState(50);
  return html`<div class="compare">
    <img src=${after} alt="Result" />
    <img class="compare-before" src=${before} alt="Input image" style=${{ clipPath: `inset(0 ${100 - share}% 0 0)` }} />
    <span class="compare-line" style=${{ left: `${share}%` }} aria-hidden="true"></span>
    <input type="range" min="0" max="100" value=${share} aria-label="Share of the input image that is shown"
      data-test="compare" onInput=${(event) => setShare(Number(event.target.value))} />
  </div>`;
}

function Details({ state, actions }) {
  const { record, stages } = state;
  const [copied, setCopied] = useState(false);
  const copyLink = async () => setCopied(await copyText(actions.link(record)));
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  return html`<div class="details">
    <p class="prompt-text">${record.input.prompt}</p>
    <p class="facts muted">
      <span>${record.model}</span>
      ${record.metrics.seed !== undefined && html`<span>seed <span class="number" data-test="seed">${record.metrics.seed}</span></span>`}
      ${record.metrics.pool && html`<span>${record.metrics.pool}</span>`}
    </p>
    <div class="detail-actions">
      <${IconButton} icon="recall" text="Recall settings" label="Recall settings" data-test="recall" onClick=${() => actions.recall(record)} />
      <${IconButton} icon="link" text=${copied ? 'Copied' : 'Copy link'} label="Copy link" onClick=${copyLink} />
    </div>
    ${stages.length > 0 && html`<${Stages} stages=${stages} />`}
    ${record.logs && html`<details class="logs"><summary>Logs</summary><pre tabindex="0">${record.logs}</pre></details>`}
  </div>`;
}

function Stages({ stages }) {
  const shown = stages.filter(({ ms }) => ms >= 1);
  return html`<dl class="stages" aria-label="Time of each stage">
    ${shown.map(({ name, ms }) => html`<div><dt>${name.replaceAll('_', ' ')}</dt><dd class="number">${ms < 1000 ? `${Math.round(ms)} ms` : formatSeconds(ms / 1000)}</dd></div>`)}
  </dl>`;
}

function Lightbox({ src, onClose }) {
  const open = (dialog) => dialog && !dialog.open && dialog.showModal();
  return html`<dialog class="lightbox" ref=${open} onClose=${onClose} onClick=${(event) => event.currentTarget.close()} aria-label="Image">
    <img src=${src} alt="" />
    <button type="button" class="button quiet icon-only" aria-label="Close" autofocus>
      <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M6 6l12 12M18 6L6 18" /></svg>
    </button>
  </dialog>`;
}
