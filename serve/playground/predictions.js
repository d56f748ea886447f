// Predictions as the service reports them: created, followed until they end, and shared by all views of the page.

import { useEffect, useState } from './vendor/hooks.mjs';
import { ApiError, linkUrl, send, sendJson } from './api.js';
import { forget, remember } from './history.js';

// Browsers open at most six connections to a server over HTTP/1.1; further predictions are polled.
const MAX_STREAMS = 3;
const POLL_MS = 1500;
const QUEUE_POLL_MS = 3000;
const ENDED = ['succeeded', 'failed', 'canceled'];
const WITHHELD = /^Image (\d+) was withheld/gm;

const states = new Map();
const listeners = new Set();
let openStreams = 0;

/** What is shown before a record was read. */
const UNKNOWN = { record: null, progress: {}, previews: {}, outputs: [], stages: [], ahead: null, missing: false };

export const hasEnded = (state) => state.missing || ENDED.includes(state.record?.status);

function change(id, update) {
  states.set(id, { ...(states.get(id) ?? UNKNOWN), ...update });
  listeners.forEach((listener) => listener(id));
}

/** The state of a prediction; it is read from the service if it is not known. */
export function usePrediction(id) {
  const [, setCount] = useState(0);
  useEffect(() => {
    if (id === null) return undefined;
    const listener = (changed) => changed === id && setCount((count) => count + 1);
    listeners.add(listener);
    if (!states.has(id)) load(id);
    else setCount((count) => count + 1);
    return () => listeners.delete(listener);
  }, [id]);
  return (id !== null && states.get(id)) || UNKNOWN;
}

export async function createPrediction(fullName, input) {
  const record = await sendJson(`v1/models/${fullName}/predictions`, { method: 'POST', body: { input, stream: true } });
  // The clocks of the browser and of the service may differ.
  change(record.id, { record, createdMs: Date.now() });
  remember(record.id);
  follow(record);
  return record.id;
}

export async function cancelPrediction(id) {
  change(id, { record: await sendJson(`v1/predictions/${id}/cancel`, { method: 'POST' }) });
}

export async function load(id) {
  if (!states.has(id)) change(id, {});
  try {
    const record = await read(id);
    if (!ENDED.includes(record.status)) follow(record);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) drop(id);
  }
  return states.get(id);
}

function drop(id) {
  change(id, { missing: true });
  forget(id);
}

/** Resolves to the state of a prediction that has ended. */
export function whenEnded(id) {
  return new Promise((resolve) => {
    const listener = () => {
      const state = states.get(id);
      if (!state || !hasEnded(state)) return;
      listeners.delete(listener);
      resolve(state);
    };
    listeners.add(listener);
    listener();
  });
}

async function read(id) {
  const response = await send(`v1/predictions/${id}`);
  const record = await response.json();
  const stages = parseServerTiming(response.headers.get('Server-Timing') ?? '');
  const ended = ENDED.includes(record.status);
  change(id, { record, stages, ...(ended ? { outputs: placeOutputs(record) } : {}) });
  if (record.data_removed) drop(id);
  return record;
}

function follow(record) {
  watchQueue(record.id);
  const url = linkUrl(record.urls.stream);
  if (url === null || openStreams >= MAX_STREAMS) poll(record.id);
  else stream(record.id, url);
}

function stream(id, url) {
  const source = new EventSource(`${url}?progress=true`);
  openStreams += 1;
  const close = () => {
    source.close();
    openStreams -= 1;
  };
  const patch = (update) => {
    const { record } = states.get(id);
    change(id, { record: { ...record, ...update } });
  };
  source.addEventListener('logs', (event) => patch({ logs: states.get(id).record.logs + event.data }));
  // The response to the creation has the first logs, which the stream sends again.
  patch({ logs: '' });
  source.addEventListener('progress', (event) => {
    const { image, step, total, preview } = JSON.parse(event.data);
    const { progress, previews } = states.get(id);
    change(id, {
      progress: { ...progress, [image]: { step, total } },
      previews: preview ? { ...previews, [image]: preview } : previews,
    });
    patch({ status: 'processing' });
  });
  source.addEventListener('output', (event) => {
    const { outputs, record } = states.get(id);
    change(id, { outputs: addOutput(outputs, event.data, record.logs) });
  });
  source.addEventListener('done', () => {
    close();
    read(id).catch(() => poll(id));
  });
  source.addEventListener('error', () => {
    // EventSource connects again unless the response had an error status.
    if (source.readyState !== EventSource.CLOSED) return;
    close();
    poll(id);
  });
}

async function poll(id) {
  for (;;) {
    try {
      const record = await read(id);
      if (ENDED.includes(record.status)) return undefined;
      change(id, { progress: loggedProgress(record.logs) });
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return drop(id);
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** The progress of the slowest image, from the last progress bar in the logs. */
function loggedProgress(logs) {
  const bar = [...logs.matchAll(/\| (\d+)\/(\d+) \[/g)].at(-1);
  return bar ? { 0: { step: Number(bar[1]), total: Number(bar[2]) } } : {};
}

/** Counts the predictions of the same pool that wait and are older, until the prediction runs. */
async function watchQueue(id) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, QUEUE_POLL_MS));
    const { record } = states.get(id);
    if (record.status !== 'starting') return change(id, { ahead: null });
    try {
      const { results } = await sendJson('v1/predictions');
      const isAhead = (each) =>
        each.status === 'starting' && each.metrics.pool === record.metrics.pool && each.created_at < record.created_at;
      change(id, { ahead: results.filter(isAhead).length });
    } catch {
      // The position is only a hint.
    }
  }
}

export function withheldImages(logs) {
  return new Set([...(logs ?? '').matchAll(WITHHELD)].map((match) => Number(match[1])));
}

/** The output of each image by its index; those of withheld images are missing. */
function placeOutputs(record) {
  return (record.output ?? []).reduce((placed, uri) => addOutput(placed, uri, record.logs), []);
}

function addOutput(outputs, uri, logs) {
  const named = /\/out-(\d+)\.\w+(?:\?|$)/.exec(uri.startsWith('data:') ? '' : uri);
  const withheld = withheldImages(logs);
  let index = 0;
  while (outputs[index] || withheld.has(index)) index += 1;
  const placed = [...outputs];
  placed[named ? Number(named[1]) : index] = uri;
  return placed;
}

function parseServerTiming(header) {
  return header
    .split(',')
    .map((entry) => /^\s*(\w+);dur=([\d.]+)/.exec(entry))
    .filter(Boolean)
    .map(([, name, duration]) => ({ name, ms: Number(duration) }));
}
