// HTTP requests to the service that serves this page, with its token if it has one.

const TOKEN_KEY = 'flux-serve.token';
const BASE = new URL('../', import.meta.url);

export const baseUrl = BASE.href.replace(/\/$/, '');

let token = sessionStorage.getItem(TOKEN_KEY);
let askForToken = async () => null;
let asking = null;

/** An error response, as `application/problem+json` or Cog's `detail`. */
export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    const detail = typeof body.detail === 'string' ? body.detail : body.title;
    super(detail || `the service answered with status ${status}`);
    this.status = status;
    this.retryAfterS = Number(body.retry_after ?? retryAfter ?? 0);
    const fields = body.invalid_fields ?? [];
    this.fields = Object.fromEntries(fields.map((each) => [each.field.replace(/^input\./, ''), each.description]));
  }
}

/** `ask(wasWrong)` resolves to a token, or to null if the user gave none. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

function newToken(rejected) {
  // Several requests fail at once, and the user is asked once.
  asking ??= askForToken(rejected !== null).then((given) => {
    asking = null;
    if (given === null) return;
    token = given;
    sessionStorage.setItem(TOKEN_KEY, given);
  });
  return asking;
}

/** The response to a request. Raises `ApiError`, and TypeError if the service cannot be reached. */
export async function send(path, { method = 'GET', body } = {}) {
  for (;;) {
    const sent = token;
    const headers = sent === null ? {} : { Authorization: `Bearer ${sent}` };
    const isForm = body instanceof FormData;
    if (body !== undefined && !isForm) headers['Content-Type'] = 'application/json';
    const content = body === undefined || isForm ? body : JSON.stringify(body);
    const response = await fetch(new URL(path, BASE), { method, headers, body: content, credentials: 'same-origin' });
    if (response.ok) return response;
    if (response.status === 401) {
      if (token === sent) await newToken(sent);
      if (token !== sent) continue;
    }
    const problem = await response.json().catch(() => ({}));
    throw new ApiError(response.status, problem, response.headers.get('Retry-After'));
  }
}

export async function sendJson(path, options) {
  return (await send(path, options)).json();
}

/** Uploads a file and returns its URL, which an input takes. */
export async function uploadFile(blob, name) {
  const form = new FormData();
  form.append('content', blob, name);
  const file = await sendJson('v1/files', { method: 'POST', body: form });
  return file.urls.get;
}

const OWN_PATH = /(?:links\/[^/]+\/)?(?:outputs\/[^/]+\/\d+\/[^/]+|v1\/(?:predictions|files)\/.+)$/;

/**
 * The path, relative to this service, of a URL in one of its responses; null for other URLs.
 *
 * The service may be reached under other names than the one in its responses, and the page makes no request to others.
 */
export function ownPath(url) {
  if (!/^https?:/.test(url)) return null;
  const match = OWN_PATH.exec(new URL(url).pathname);
  return match === null ? null : match[0];
}

/** The URL of a file or output under the name with which this page was opened; other URLs stay. */
export function localUrl(uri) {
  const path = ownPath(uri);
  return path === null ? uri : `${baseUrl}/${path}`;
}

/** The content of an input or output: a `data:` URI, or a URL of this service. */
export async function readBlob(uri) {
  if (uri.startsWith('data:')) return dataBlob(uri);
  const path = ownPath(uri);
  if (path === null) throw new Error('the image is on another server');
  const isFile = /v1\/files\/[^/]+$/.test(path);
  return (await send(isFile ? `${path}/download` : path)).blob();
}

function dataBlob(uri) {
  const [head, text] = [uri.slice(5, uri.indexOf(',')), uri.slice(uri.indexOf(',') + 1)];
  const type = head.split(';')[0];
  if (!head.endsWith(';base64')) return new Blob([decodeURIComponent(text)], { type });
  return new Blob([Uint8Array.from(atob(text), (char) => char.charCodeAt(0))], { type });
}

/** The URL with which an `img` or `EventSource` of this page reads a link, without a token. */
export function linkUrl(uri) {
  const path = ownPath(uri);
  return path !== null && path.startsWith('links/') ? new URL(path, BASE).href : null;
}

export const hasToken = () => token !== null;
