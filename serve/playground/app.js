// The page: it loads the served models, holds the form and the prediction on screen, and sends requests.

import { render } from './vendor/preact.mjs';
import { useEffect, useRef, useState } from './vendor/hooks.mjs';
import { ApiError, baseUrl, sendJson } from './api.js';
import { Code } from './code.js';
import { Editor } from './editor.js';
import { focusField, Form } from './form.js';
import { Gallery } from './gallery.js';
import { COMPARED_INPUTS, Grid } from './grid.js';
import { forgetUploads, readSource, readSourceFrom, targetSize } from './image.js';
import { EMPTY_MASK, readMaskFrom, uploadInputs } from './mask.js';
import { Notice, noticeOf } from './notice.js';
import { useImageFiles, useStarting } from './page_hooks.js';
import { cancelPrediction, createPrediction, load, usePrediction } from './predictions.js';
import { buildInput, describeModel, fittingValues, plannedSize, sizeOf, valueOf } from './schema.js';
import { Stage } from './stage.js';
import { TokenDialog } from './token.js';
import { html, scrollToForm, scrollToStage, Tabs } from './ui.js';

const LINK = /^#prediction=([\w-]+)$/;
const VARIATIONS = 4;

function App() {
  const [loaded, setLoaded] = useState(null);
  const [failure, setFailure] = useState(null);
  const loadAll = async () => {
    setFailure(null);
    try {
      const [models, config] = await Promise.all([sendJson('v1/models'), sendJson('playground/config.json')]);
      setLoaded({ models: models.results.map(describeModel), config });
    } catch (error) {
      setFailure(noticeOf(error));
    }
  };
  useEffect(() => {
    loadAll();
  }, []);
  return html`<${TokenDialog} />
    ${loaded ? html`<${Playground} ...${loaded} />` : html`<main class="loading">${failure
      ? html`<${Notice} notice=${{ ...failure, retryAt: Date.now() }} onRetry=${loadAll} onClose=${() => setFailure(null)} />`
      : html`<p class="muted">Loading</p>`}</main>`}`;
}

function Playground({ models, config }) {
  const [modelName, setModelName] = useState(models[0].fullName);
  const [values, setValues] = useState(() => fittingValues(models[0], config.first_inputs));
  const [source, setSource] = useState(null);
  const [mask, setMask] = useState(EMPTY_MASK);
  const [errors, setErrors] = useState({});
  const [notice, setNotice] = useState(null);
  const [shown, setShown] = useState(null);
  const [view, setView] = useState('create');
  const [tab, setTab] = useState('result');
  const [sending, setSending] = useState(false);
  const starting = useStarting();
  const retry = useRef(null);
  const busy = useRef(false);
  const state = usePrediction(shown);
  const model = models.find((each) => each.fullName === modelName);
  const megapixels = valueOf(model, values, 'megapixels');
  const input = buildInput(model, values);
  const size = source ? targetSize(source, megapixels, config) : plannedSize(model, input, config);
  const tabShown = tab === 'image' && source === null ? 'result' : tab;
  const comparing = view === 'grid';

  const setValue = (name, value) => {
    setValues((before) => ({ ...before, [name]: value }));
    setErrors(({ [name]: _, ...others }) => others);
  };
  const fail = (error) => {
    if (error instanceof ApiError && error.fields.image) forgetUploads();
    const fields = error instanceof ApiError ? error.fields : {};
    setErrors(fields);
    const known = Object.keys(fields).length > 0 && Object.keys(fields).every((name) => model.fields.some((each) => each.name === name));
    if (known) focusField(Object.keys(fields)[0]);
    else report(error);
  };
  const report = (error) => {
    setNotice(noticeOf(error));
    scrollToStage();
  };
  const attempt = async (action) => {
    // `sending` disables the button only after the next rendering.
    if (busy.current) return;
    busy.current = true;
    retry.current = action;
    setNotice(null);
    setErrors({});
    setSending(true);
    try {
      await action();
    } catch (error) {
      fail(error);
    }
    busy.current = false;
    setSending(false);
  };
  const open = (id) => {
    setShown(id);
    showTab('result');
  };
  const showTab = (name) => {
    setView('create');
    setTab(name);
    scrollToStage();
  };
  const selectView = (name) => {
    setView(name);
    if (name === 'grid') scrollToStage();
    else scrollToForm();
  };
  const generate = () =>
    attempt(async () => {
      const images = await uploadInputs(source, mask, size, config);
      open(await createPrediction(model.fullName, { ...input, ...images }));
    });
  const setImage = (next) => {
    setSource(next);
    setMask(EMPTY_MASK);
    setValue('image', undefined);
    setValue('mask', undefined);
    setNotice(null);
    if (next !== null) showTab('image');
  };
  const reset = () => {
    setValues(fittingValues(model, config.first_inputs));
    setImage(null);
    setTab('result');
    setErrors({});
  };
  const takeFile = (file) => readSource(file, file.name || 'the image').then(setImage, report);
  useImageFiles(takeFile);

  /** Sets the form to the input of a prediction. */
  const recall = async (record, changes = {}) => {
    const target = models.find((each) => each.fullName === record.model) ?? model;
    const { image, mask: maskUri, ...input } = record.input;
    setModelName(target.fullName);
    setValues({ ...input, seed: record.metrics.seed, ...changes });
    setErrors({});
    setNotice(null);
    setSource(null);
    setMask(EMPTY_MASK);
    if (!image) return;
    try {
      setSource(await readSourceFrom(image, 'image'));
      if (maskUri) setMask(await readMaskFrom(maskUri));
    } catch {
      setValue('image', /^https?:/.test(image) ? image : undefined);
      setValue('mask', /^https?:/.test(maskUri ?? '') ? maskUri : undefined);
      report(new Error('The input image of this prediction is no longer here, or is on another server.'));
    }
  };
  const actions = {
    cancel: (id) => cancelPrediction(id).catch(report),
    recall: (record) => recall(record).then(scrollToForm),
    edit: (uri, name) => readSourceFrom(uri, name).then(setImage, report),
    link: (record) => `${baseUrl}/playground#prediction=${record.id}`,
    otherLora: async (record, index) => {
      await recall(record, { seed: record.metrics.seed + index, num_outputs: 1 });
      focusField('replicate_weights');
    },
    vary: async (record, index) => {
      const changes = { seed: record.metrics.seed + index + 1, num_outputs: VARIATIONS };
      recall(record, changes);
      await attempt(async () => open(await createPrediction(record.model, { ...record.input, ...changes })));
    },
  };
  useEffect(() => {
    const follow = async () => {
      const id = LINK.exec(location.hash)?.[1];
      if (!id) return;
      open(id);
      const found = await load(id);
      if (found?.record && !found.missing) recall(found.record);
    };
    addEventListener('hashchange', follow);
    follow();
    return () => removeEventListener('hashchange', follow);
  }, []);
  const chooseModel = (name) => {
    const next = models.find((each) => each.fullName === name);
    setModelName(name);
    setValues((before) => fittingValues(next, before));
    setErrors({});
  };
  const submit = (event) => {
    event.preventDefault();
    if (comparing) document.querySelector('.grid-form').requestSubmit();
    else generate();
  };
  const onKeyDown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const compare = (run) =>
    attempt(async () => {
      run(await uploadInputs(source, mask, size, config));
    });
  const isPrediction = tab === 'code' && state.record !== null && !state.missing;
  return html`<header class="top">
      <h1 class="visually-hidden">flux-serve playground</h1>
      <a class="brand" href=${`${baseUrl}/playground`}><img src=${`${baseUrl}/playground/favicon.svg`} alt="" /><span>flux-serve</span></a>
      <${Tabs} label="View" panel="view" selected=${view} onSelect=${selectView} tabs=${[['create', 'Create'], ['grid', 'Compare']]} />
      <span class="spacer"></span>
      <a class="button quiet" href=${`${baseUrl}/openapi.json`}>API</a>
    </header>
    <main class="layout" id="view" onKeyDown=${onKeyDown}>
      <form class="panel" noValidate onSubmit=${submit}>
        <div class="panel-scroll">
          <div class="field model-field">
            <label class="label" for="served-model">Model</label>
            <select id="served-model" value=${modelName} onChange=${(event) => chooseModel(event.target.value)}>
              ${models.map((each) => html`<option value=${each.fullName}>${each.fullName}</option>`)}
            </select>
            <p class="description">${model.description}</p>
          </div>
          <${Form} model=${model} values=${values} errors=${errors} config=${config} source=${source} mask=${mask} size=${size}
            hidden=${comparing ? COMPARED_INPUTS : []} onValue=${setValue} onFile=${takeFile} onEdit=${() => showTab('image')} onRemoveImage=${() => setImage(null)} />
        </div>
        ${!comparing && html`<div class="run-bar">
          <button class="button primary" disabled=${sending} data-test="generate">${sending ? 'Sending' : 'Generate'}</button>
          <button type="button" class="button quiet" data-test="reset" onClick=${reset}>Reset</button>
        </div>`}
      </form>
      <div class="stage">
        ${starting && html`<div class="notice info" role="status">The service is starting: it loads the models.</div>`}
        ${notice && html`<${Notice} notice=${notice} onRetry=${() => attempt(retry.current)} onClose=${() => setNotice(null)} />`}
        <div class="stage-view" hidden=${!comparing}>
          <${Grid} model=${model} input=${input} size=${size} config=${config} hasImage=${source !== null || Boolean(input.image)}
            disabled=${sending} onStart=${compare} onOpen=${open} />
        </div>
        ${!comparing && html`<div class="stage-view">
          <${Tabs} label="Stage" panel="stage-panel" selected=${tabShown} onSelect=${setTab}
            tabs=${[['result', 'Result'], ...(source ? [['image', 'Image and mask']] : []), ['code', 'Code']]} />
          <div id="stage-panel" role="tabpanel">
            ${tabShown === 'result' && html`<${Stage} state=${state} actions=${actions}
              aspect=${sizeOf(state.record, models, config)} />`}
            ${tabShown === 'image' && html`<${Editor} source=${source} mask=${mask} megapixels=${megapixels} config=${config}
              onSource=${setSource} onMask=${setMask} onRemove=${() => setImage(null)} />`}
            ${tabShown === 'code' && html`<${Code} isPrediction=${isPrediction} needsUpload=${!isPrediction && source !== null}
              model=${isPrediction ? state.record.model : model.fullName}
              input=${isPrediction ? { ...state.record.input, seed: state.record.metrics.seed } : input}
              defaults=${Object.fromEntries(model.fields.map((field) => [field.name, field.default]))} />`}
          </div>
        </div>`}
        <${Gallery} selected=${shown} onSelect=${open} />
      </div>
    </main>`;
}

render(html`<${App} />`, document.getElementById('app'));
