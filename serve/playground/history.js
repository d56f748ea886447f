// The ids of this browser's predictions, newest first, in its local storage.

import { useEffect, useState } from './vendor/hooks.mjs';

const KEY = 'flux-serve.predictions';
const MAX_IDS = 300;
const listeners = new Set();

function readIds() {
  try {
    const ids = JSON.parse(localStorage.getItem(KEY) ?? '[]');
    return Array.isArray(ids) ? ids.filter((id) => typeof id === 'string') : [];
  } catch {
    return [];
  }
}

function write(ids) {
  localStorage.setItem(KEY, JSON.stringify(ids.slice(0, MAX_IDS)));
  listeners.forEach((listener) => listener());
}

export const remember = (id) => write([id, ...readIds().filter((each) => each !== id)]);
export const forget = (id) => write(readIds().filter((each) => each !== id));
export const forgetAll = () => write([]);

export function useHistory() {
  const [ids, setIds] = useState(readIds);
  useEffect(() => {
    const update = () => setIds(readIds());
    listeners.add(update);
    addEventListener('storage', update);
    return () => {
      listeners.delete(update);
      removeEventListener('storage', update);
    };
  }, []);
  return ids;
}
