// The code of a prediction for each client.

const python = (value) => {
  if (value === null || value === undefined) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  return JSON.stringify(value);
};
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const indent = (text, spaces) => text.replaceAll('\n', `\n${' '.repeat(spaces)}`);

function pythonDict(object) {
  const entries = Object.entries(object).map(([key, value]) => `    ${JSON.stringify(key)}: ${python(value)},\n`);
  return `{\n${entries.join('')}}`;
}

/** `call` has the model's full name, the input, the URL of the service, and whether it has a token. */
export const LANGUAGES = [
  ['curl', 'curl', curl],
  ['replicate', 'Python, replicate', replicatePython],
  ['openai', 'Python, openai', openaiPython],
  ['javascript', 'JavaScript', replicateJavaScript],
  ['handle', 'Python handle', handle],
];

function curl({ model, input, url, hasToken }) {
  const token = hasToken ? ` \\\n  -H "Authorization: Bearer $FLUX_SERVE_TOKEN"` : '';
  return `curl -s ${url}/v1/models/${model}/predictions \\
  -H 'Prefer: wait'${token} \\
  -d ${shell(JSON.stringify({ input }, null, 2))}
`;
}

function replicatePython({ model, input, url, hasToken }) {
  const token = hasToken ? ', api_token=os.environ["FLUX_SERVE_TOKEN"]' : '';
  return `${hasToken ? 'import os\n\n' : ''}import replicate

client = replicate.Client(base_url=${python(url)}${token})
images = client.run(
    ${python(model)},
    input=${indent(pythonDict(input), 4)},
)
for index, image in enumerate(images):
    with open(f"image-{index}.${input.output_format ?? 'webp'}", "wb") as file:
        file.write(image.read())
`;
}

function replicateJavaScript({ model, input, url, hasToken }) {
  const token = hasToken ? ', auth: process.env.FLUX_SERVE_TOKEN' : '';
  return `import { writeFile } from "node:fs/promises";
import Replicate from "replicate";

const replicate = new Replicate({ baseUrl: ${JSON.stringify(`${url}/v1`)}${token} });
const input = ${JSON.stringify(input, null, 2)};
const images = await replicate.run(${JSON.stringify(model)}, { input });
for (const [index, image] of images.entries()) {
  await writeFile(\`image-\${index}.${input.output_format ?? 'webp'}\`, image);
}
`;
}

function handle({ model, input }) {
  return `import ray
from ray import serve

ray.init(address="auto")  # or the address that scripts/serve prints
handle = serve.get_app_handle("flux")
prediction = handle.predict.remote(
    ${indent(pythonDict(input), 4)},
    ${python(model)},
).result()
print(prediction["output"])
`;
}

const OPENAI_NAMES = ['prompt', 'num_outputs', 'output_format', 'output_quality', 'image', 'mask'];

function openaiPython({ model, input, url, hasToken, defaults }) {
  if (input.model !== undefined)
    return `# OpenAI's API has no parameter for the input "model": it names the served model.
# Choose a served model whose own model is ${python(input.model)}.
`;
  const format = input.output_format ?? defaults.output_format ?? 'webp';
  const extra = Object.fromEntries(Object.entries(input).filter(([name]) => !OPENAI_NAMES.includes(name)));
  const lines = [
    `model=${python(model)},`,
    ...(input.image === undefined ? [] : [`image=("image.png", read(${python(input.image)})),`]),
    ...(input.mask === undefined ? [] : [`mask=("mask.png", transparent(read(${python(input.mask)}))),`]),
    `prompt=${python(input.prompt ?? '')},`,
    `n=${input.num_outputs ?? defaults.num_outputs ?? 1},`,
    `output_format=${python(format === 'jpg' ? 'jpeg' : format)},`,
    ...(format === 'png' ? [] : [`output_compression=${input.output_quality ?? defaults.output_quality ?? 80},`]),
    ...(Object.keys(extra).length === 0 ? [] : [`extra_body=${indent(pythonDict(extra), 4)},`]),
  ];
  const call = input.image === undefined ? 'generate' : 'edit';
  const key = hasToken ? 'os.environ["FLUX_SERVE_TOKEN"]' : '"none"';
  return `${openaiImports(input, hasToken)}
client = OpenAI(base_url=${python(`${url}/v1`)}, api_key=${key})
${openaiHelpers(input, hasToken)}images = client.images.${call}(
    ${lines.join('\n    ')}
)
for index, image in enumerate(images.data):
    with open(f"image-{index}.${format}", "wb") as file:
        file.write(b64decode(image.b64_json))
`;
}

function openaiImports(input, hasToken) {
  return [
    ...(hasToken ? ['import os'] : []),
    'from base64 import b64decode',
    ...(input.mask === undefined ? [] : ['from io import BytesIO']),
    ...(input.image === undefined ? [] : ['from urllib.request import Request, urlopen']),
    '',
    'from openai import OpenAI',
    ...(input.mask === undefined ? [] : ['from PIL import Image']),
    '',
  ].join('\n');
}

function openaiHelpers(input, hasToken) {
  if (input.image === undefined) return '';
  const headers = hasToken ? '{"Authorization": f"Bearer {client.api_key}"}' : '{}';
  const read = `

def read(url):
    url += "/download" if "/v1/files/" in url and not url.endswith("/download") else ""
    return urlopen(Request(url, headers=${headers})).read()

`;
  if (input.mask === undefined) return `${read}\n`;
  return `${read}
def transparent(mask):
    # OpenAI's API repaints where the mask is transparent, and this service where it is white.
    white = Image.open(BytesIO(mask)).convert("L")
    image = Image.new("RGBA", white.size)
    image.putalpha(white.point(lambda value: 0 if value >= 128 else 255))
    image.save(content := BytesIO(), "PNG")
    return content.getvalue()


`;
}
