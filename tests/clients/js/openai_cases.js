// Calls the service with OpenAI's JavaScript client: `node openai_cases.js BASE_URL CASE IMAGE_FILE`.
// It prints what the case returns as one line of JSON.
const fs = require("node:fs");
const OpenAI = require("openai");

const [baseUrl, name, imageFile] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${baseUrl}/v1`, apiKey: "secret", maxRetries: 0 });

const CAT = {
  prompt: "a cat",
  size: "512x512",
  num_inference_steps: 2,
  seed: 5,
  disable_safety_checker: true,
};

async function failureOf(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code, param: error.param };
  }
  return null;
}

async function eventsOf(stream) {
  const events = [];
  for await (const event of await stream) {
    events.push({ type: event.type, content: event.b64_json });
  }
  return events;
}

const image = () => fs.createReadStream(imageFile);
const contentsOf = (response) => response.data.map((each) => each.b64_json);

const CASES = {
  generate: async () => contentsOf(await client.images.generate({ ...CAT, model: "gpt-image-1" })),
  edit: async () => contentsOf(await client.images.edit({ ...CAT, image: image(), mask: image() })),
  stream: () => eventsOf(client.images.generate({ ...CAT, stream: true, partial_images: 2 })),
  streamedEdit: () => eventsOf(client.images.edit({ ...CAT, image: image(), stream: true })),
  streamFailure: () => failureOf(() => eventsOf(client.images.generate({ ...CAT, stream: true }))),
  invalid: () => failureOf(() => client.images.generate({ ...CAT, n: 11 })),
  failure: () => failureOf(() => client.images.generate(CAT)),
  unknownModel: () => failureOf(() => client.images.generate({ ...CAT, model: "gpt-6" })),
};

CASES[name]().then((result) => console.log(JSON.stringify(result)));
