// The view library, icons and small controls.

import { h } from './vendor/preact.mjs';
import htm from './vendor/htm.mjs';

export const html = htm.bind(h);

const ICONS = {
  moreImages: 'M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM16.5 13v7M13 16.5h7',
  swap: 'M4 8h13l-3-3M20 16H7l3 3',
  edit: 'M4 20l1-4L16 5l3 3L8 19zM14 7l3 3',
  compare: 'M12 3v18M4 6h5v12H4zM15 6h5v12h-5z',
  download: 'M12 4v11m0 0l-4-4m4 4l4-4M5 20h14',
  link: 'M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1',
  recall: 'M4 12a8 8 0 1 0 3-6.2M7 2v4h4',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13',
  upload: 'M12 16V5m0 0L8 9m4-4l4 4M5 20h14',
  undo: 'M9 7L4 12l5 5M4 12h10a6 6 0 0 1 6 6',
  redo: 'M15 7l5 5-5 5M20 12H10a6 6 0 0 0-6 6',
  brush: 'M20 4c-5 2-9 6-11 10l1 1c4-2 8-6 10-11zM8 15c-3 0-3 3-5 4 2 2 7 1 7-2z',
  erase: 'M9 20h11M4 15l9-9 6 6-8 8H8z',
  invert: 'M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18',
  fill: 'M5 5h14v14H5zM5 10l5-5M5 15L15 5M6 19L19 6M11 19l8-8M16 19l3-3',
  dice: 'M5 5h14v14H5zM8.7 9h.6M14.7 15h.6M14.7 9h.6M8.7 15h.6',
  close: 'M6 6l12 12M18 6L6 18',
};

export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name]} /></svg>`;
}

export function IconButton({ icon, label, text, pressed, ...rest }) {
  const title = text ? undefined : label;
  return html`<button
    type="button"
    class=${text ? 'button quiet' : 'button quiet icon-only'}
    aria-label=${label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)}
    title=${title}
    ...${rest}
  ><${Icon} name=${icon} />${text}</button>`;
}

/** A tab list whose tabs are moved through with the arrow keys. `tabs` has pairs of id and label. */
export function Tabs({ label, tabs, selected, onSelect, panel }) {
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const index = tabs.findIndex(([id]) => id === selected);
    const [next] = tabs[(index + step + tabs.length) % tabs.length];
    onSelect(next);
    event.currentTarget.querySelector(`[data-tab="${next}"]`).focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} onKeyDown=${onKeyDown}>
    ${tabs.map(
      ([id, name]) => html`<button
        type="button"
        role="tab"
        data-tab=${id}
        aria-selected=${String(id === selected)}
        aria-controls=${panel}
        tabindex=${id === selected ? 0 : -1}
        onClick=${() => onSelect(id)}
      >${name}</button>`,
    )}
  </div>`;
}

/** Copies text, also where pages without https have no clipboard. Returns whether it was copied. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // No permission; the older way may work.
    }
  }
  const area = document.createElement('textarea');
  area.value = text;
  area.className = 'visually-hidden';
  (document.querySelector('dialog[open]') ?? document.body).append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  return copied;
}

export function formatSeconds(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Shows the form or the results, which are one below the other in a narrow window, after the next rendering. */
export const scrollToForm = () => scrollTo('.panel');
export const scrollToStage = () => scrollTo('.stage');

function scrollTo(selector) {
  setTimeout(() => document.querySelector(selector)?.scrollIntoView({ block: 'start' }));
}
