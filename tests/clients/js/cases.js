// Calls the service with Replicate's JavaScript client: `node cases.js BASE_URL CASE [ARGUMENT]`. The argument is an image
// file, or JSON.
// It prints what the case returns as one line of JSON.
const fs = require("node:fs/promises");
const Replicate = require("replicate");

const [baseUrl, name, imageFile] = process.argv.slice(2);
const replicate = new Replicate({ baseUrl: `${baseUrl}/v1`, auth: "secret" });

const OWNER = "fofr";
const MODEL = "flux-handwriting-and-sketch";
const REFERENCE = `${OWNER}/${MODEL}`;
const VERSION = "d592f697";
const CAT = {
  prompt: "a cat",
  model: "schnell",
  num_inference_steps: 2,
  megapixels: "0.25",
  seed: 5,
  replicate_weights: "",
  extra_lora: "",
  disable_safety_checker: true,
  output_format: "png",
};

async function run(input = {}, reference = REFERENCE, options = {}) {
  const output = await replicate.run(reference, { input: { ...CAT, ...input }, ...options });
  return Promise.all(output.map(async (file) => {
    const blob = await file.blob();
    return Buffer.from(await blob.arrayBuffer()).toString("base64");
  }));
}

async function failureOf(call) {
  try {
    await call();
  } catch (error) {
    return { message: error.message, status: error.response ? error.response.status : null };
  }
  return null;
}

const readImage = () => fs.readFile(imageFile);

const CASES = {
  text: () => run(),
  textWithVersion: () => run({}, `${REFERENCE}:${VERSION}`),
  polled: () => run({}, REFERENCE, { wait: { mode: "poll", interval: 20 } }),
  buffer: async () => run({ image: await readImage() }),
  blob: async () => run({ image: new Blob([await readImage()], { type: "image/png" }) }),
  file: async () => run({ image: new File([await readImage()], "boat.png", { type: "image/png" }) }),
  bufferAsLora: async () => run({ replicate_weights: await readImage() }),
  dataUri: async () => {
    const content = (await readImage()).toString("base64");
    return run({ image: `data:image/png;base64,${content}` });
  },
  url: () => run({ image: imageFile }),
  stream: async () => {
    const events = [];
    for await (const { event, data } of replicate.stream(REFERENCE, { input: CAT })) {
      events.push({ event, data });
    }
    return events;
  },
  streamFailure: () => failureOf(async () => {
    for await (const _ of replicate.stream(REFERENCE, { input: CAT }));
  }),
  failure: () => failureOf(() => run()),
  invalid: () => failureOf(() => run({ num_outputs: 9 })),
  cancel: async () => {
    const created = await replicate.predictions.create({ model: REFERENCE, input: CAT });
    const canceled = await replicate.predictions.cancel(created.id);
    const ended = await replicate.wait(canceled, {});
    return [created.status, canceled.status, ended.status, (await replicate.predictions.get(created.id)).status];
  },
  list: async () => {
    const created = await replicate.predictions.create({ version: VERSION, input: CAT, wait: true });
    const listed = [];
    for await (const page of replicate.paginate(replicate.predictions.list)) {
      listed.push(...page.map((prediction) => prediction.id));
    }
    return listed.includes(created.id);
  },
  files: async () => {
    const created = await replicate.files.create(await readImage(), { album: "boats" });
    const read = await replicate.files.get(created.id);
    const listed = (await replicate.files.list()).results.map((file) => file.id);
    const deleted = await replicate.files.delete(created.id);
    const missing = await failureOf(() => replicate.files.get(created.id));
    return { created, read, listed, deleted, missing: missing.status };
  },
  models: async () => {
    const model = await replicate.models.get(OWNER, MODEL);
    const version = await replicate.models.versions.get(OWNER, MODEL, VERSION);
    const versions = (await replicate.models.versions.list(OWNER, MODEL)).results.map((each) => each.id);
    const models = (await replicate.models.list()).results.map((each) => `${each.owner}/${each.name}`);
    return { model, version, versions, models };
  },
  account: () => replicate.accounts.current(),
  discovery: async () => {
    const found = (await replicate.models.search("handwriting")).results.map((each) => each.name);
    const collections = (await replicate.collections.list()).results.map((each) => each.slug);
    const collection = (await replicate.collections.get("text-to-image")).models.map((each) => each.name);
    const hardware = (await replicate.hardware.list()).map((each) => each.sku);
    return { found, collections, collection, hardware };
  },
  deployments: async () => {
    const listed = (await replicate.deployments.list()).results.map((each) => each.name);
    const deployment = await replicate.deployments.get("studio", "fast");
    const options = { input: { prompt: "a cat" }, wait: true };
    const { status, model } = await replicate.deployments.predictions.create("studio", "fast", options);
    const changes = [
      () => replicate.deployments.create({ name: "new" }),
      () => replicate.deployments.update("studio", "fast", { min_instances: 1 }),
      () => replicate.deployments.delete("studio", "fast"),
      () => replicate.models.create("me", "mine", {}),
    ];
    const refused = (await Promise.all(changes.map(failureOf))).map((error) => error.status);
    return { listed, deployment, status, model, refused };
  },
  notServed: async () => {
    return failureOf(() => replicate.trainings.list());
  },
  validateWebhooks: async () => {
    const { key } = await replicate.webhooks.default.secret.get();
    return Promise.all(JSON.parse(imageFile).map((request) => Replicate.validateWebhook(request, key)));
  },
};

CASES[name]().then((result) => console.log(JSON.stringify(result)));
