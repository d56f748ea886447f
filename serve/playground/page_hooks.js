// Hooks of the page: image files that are dropped or pasted, and whether the service still starts.

import { useEffect, useRef, useState } from './vendor/hooks.mjs';
import { send } from './api.js';

const HEALTH_POLL_MS = 2000;

/** Takes image files that are dropped on the page or pasted. */
export function useImageFiles(onFile) {
  const latest = useRef(onFile);
  latest.current = onFile;
  useEffect(() => {
    const take = (event, files) => {
      const image = [...(files ?? [])].find((file) => file.type.startsWith('image/'));
      if (!image) return;
      event.preventDefault();
      latest.current(image);
    };
    const onDrop = (event) => {
      document.body.classList.remove('dragging');
      if (event.dataTransfer?.files.length > 0) event.preventDefault();
      take(event, event.dataTransfer?.files);
    };
    const onDragOver = (event) => {
      if (![...(event.dataTransfer?.types ?? [])].includes('Files')) return;
      event.preventDefault();
      document.body.classList.add('dragging');
    };
    const onDragLeave = (event) => event.relatedTarget === null && document.body.classList.remove('dragging');
    const onPaste = (event) => take(event, event.clipboardData?.files);
    const handlers = { drop: onDrop, dragover: onDragOver, dragleave: onDragLeave, paste: onPaste };
    Object.entries(handlers).forEach(([name, handler]) => addEventListener(name, handler));
    return () => Object.entries(handlers).forEach(([name, handler]) => removeEventListener(name, handler));
  }, []);
}

/** Whether the service still starts; it is asked until it is ready. */
export function useStarting() {
  const [starting, setStarting] = useState(false);
  useEffect(() => {
    let stopped = false;
    const check = async () => {
      const status = await send('health-check').then((response) => response.json()).catch(() => ({}));
      if (stopped) return;
      setStarting(status.status === 'STARTING');
      if (status.status === 'STARTING') setTimeout(check, HEALTH_POLL_MS);
    };
    check();
    return () => {
      stopped = true;
    };
  }, []);
  return starting;
}
