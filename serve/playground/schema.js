// The form's fields, from the OpenAPI document of a served model.

const GROUPS = [
  ['prompt', 'Prompt', ['prompt']],
  ['size', 'Size', ['aspect_ratio', 'width', 'height', 'megapixels']],
  ['model', 'Model and speed', ['model', 'num_outputs', 'num_inference_steps', 'guidance_scale', 'go_fast', 'seed']],
  ['loras', 'LoRAs', ['replicate_weights', 'lora_scale', 'extra_lora', 'extra_lora_scale']],
  ['image', 'Image and mask', ['image', 'mask', 'prompt_strength']],
];
const LABELS = {
  model: 'Variant',
  num_outputs: 'Images',
  num_inference_steps: 'Steps',
  guidance_scale: 'Guidance',
  go_fast: 'Go fast',
  replicate_weights: 'LoRA',
  lora_scale: 'LoRA scale',
  extra_lora: 'Second LoRA',
  extra_lora_scale: 'Second LoRA scale',
  prompt_strength: 'Strength',
};
const ALIAS = /^Another name for `/;
export const LORA_FIELDS = ['replicate_weights', 'extra_lora'];

/** A served model of `/v1/models` with its fields and groups of fields. */
export function describeModel(model) {
  const schemas = model.latest_version.openapi_schema.components.schemas;
  const fields = Object.entries(schemas.Input.properties)
    .filter(([, schema]) => !ALIAS.test(schema.description ?? ''))
    .sort(([, one], [, other]) => one['x-order'] - other['x-order'])
    .map(([name, schema]) => describeField(name, schema, schemas));
  const fullName = `${model.owner}/${model.name}`;
  return { fullName, description: model.description, fields, groups: groupFields(fields) };
}

function describeField(name, schema, schemas) {
  const resolved = schema.allOf ? { ...schemas[schema.allOf[0].$ref.split('/').at(-1)], ...schema } : schema;
  return {
    name,
    label: LABELS[name] ?? sentenceCase(name),
    description: resolved.description ?? '',
    kind: fieldKind(name, resolved),
    integer: resolved.type === 'integer',
    options: resolved.enum,
    minimum: resolved.minimum,
    maximum: resolved.maximum,
    default: schema.default,
  };
}

function fieldKind(name, schema) {
  if (schema.enum) return 'choice';
  if (schema.type === 'boolean') return 'switch';
  if (schema.type === 'integer' || schema.type === 'number') return name === 'seed' ? 'seed' : 'number';
  if (schema.format === 'uri') return 'image';
  return name === 'prompt' ? 'prompt' : LORA_FIELDS.includes(name) ? 'lora' : 'text';
}

function groupFields(fields) {
  const grouped = new Set(GROUPS.flatMap(([, , names]) => names));
  const rest = fields.filter(({ name }) => !grouped.has(name)).map(({ name }) => name);
  return [...GROUPS, ['advanced', 'Advanced', rest]]
    .map(([id, title, names]) => ({
      id,
      title,
      fields: names.flatMap((name) => fields.filter((field) => field.name === name)),
    }))
    .filter((group) => group.fields.length > 0);
}

function sentenceCase(name) {
  const words = name.replaceAll('_', ' ');
  return words[0].toUpperCase() + words.slice(1);
}

/** The value in a form, or the default of the model. */
export function valueOf(model, values, name) {
  return values[name] ?? model.fields.find((field) => field.name === name)?.default;
}

/** The input of a request: the values that differ from the model's defaults. */
export function buildInput(model, values) {
  const entries = model.fields.flatMap(({ name, default: standard, kind }) => {
    const value = values[name];
    if (value === undefined || value === null || value === standard) return [];
    // An empty LoRA removes the default one.
    if (value === '' && !(kind === 'lora' && standard)) return [];
    return [[name, value]];
  });
  return Object.fromEntries(entries);
}

/** The size that the plan will use, or null while it is incomplete or if the size of the input image is not known. */
export function plannedSize(model, values, config) {
  if (values.image) return null;
  const ratio = valueOf(model, values, 'aspect_ratio');
  if (ratio !== 'custom') return config.sizes[valueOf(model, values, 'megapixels')]?.[ratio] ?? null;
  const sides = ['width', 'height'].map((name) => Number(values[name]));
  return sides.every((side) => side > 0) ? sides.map((side) => nearestMultiple(side, config.size_multiple)) : null;
}

/** The planned size of a prediction's images, or null. */
export function sizeOf(record, models, config) {
  const model = models.find((each) => each.fullName === record?.model);
  return model ? plannedSize(model, record.input, config) : null;
}

/** The size at which the service processes an input image. Follows `input_image_size` of the service. */
export function inputImageSize([width, height], config) {
  const scale = Math.min(1, config.image_side_max / Math.max(width, height));
  return [width, height].map((side) => nearestMultiple(side * scale, config.size_multiple));
}

function nearestMultiple(side, multiple) {
  return Math.max(multiple, Math.floor((side + multiple / 2) / multiple) * multiple);
}

/** The values that another model accepts too. */
export function fittingValues(model, values) {
  const fits = ([name, value]) => {
    const field = model.fields.find((each) => each.name === name);
    if (!field) return false;
    if (field.options) return field.options.includes(value);
    return typeof value !== 'number' || !(value < field.minimum || value > field.maximum);
  };
  return Object.fromEntries(Object.entries(values).filter(fits));
}
