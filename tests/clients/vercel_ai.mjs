// The Vercel AI SDK against inference: `node vercel_ai.mjs URL`. Exits with 0 if every call does what it should.
import assert from 'node:assert/strict'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, jsonSchema, stepCountIs, streamObject, streamText, tool } from 'ai'
import OpenAI from 'openai'

const baseURL = `${process.argv[2]}/v1`
const provider = createOpenAICompatible({
  name: 'loopwright',
  baseURL,
  apiKey: 'none',
  includeUsage: true,
  supportsStructuredOutputs: true,
})
const model = provider('assistant')
const prompt = 'How warm is Oslo?'
const options = { model, maxRetries: 0 }
const schema = jsonSchema({
  type: 'object',
  properties: { city: { type: 'string' }, degrees: { type: 'number' } },
  required: ['city', 'degrees'],
  additionalProperties: false,
})
const getWeather = tool({
  description: 'Returns how warm a city is.',
  inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
  execute: async () => '7 degrees',
})

const answer = await generateText({ ...options, prompt, system: 'Be brief.', temperature: 0, maxOutputTokens: 16 })
assert.equal(answer.text, 'hello')
assert.equal(answer.finishReason, 'stop')
assert.equal(answer.usage.outputTokens, 6)
console.log('ok generateText')

const stream = streamText({ ...options, prompt })
let text = ''
for await (const part of stream.textStream) text += part
assert.equal(text, 'hello')
assert.equal((await stream.usage).outputTokens, 6)
console.log('ok streamText')

const withTools = { ...options, prompt, tools: { get_weather: getWeather }, stopWhen: stepCountIs(3) }
const called = await generateText(withTools)
assert.equal(called.steps.length, 2)
assert.deepEqual(called.steps[0].toolCalls[0].input, { city: 'Oslo' })
assert.equal(called.text, 'It is 7 degrees.')
console.log('ok tools')

const streamed = streamText(withTools)
text = ''
for await (const part of streamed.textStream) text += part
assert.equal(text, 'It is 7 degrees.')
console.log('ok streamed tools')

const object = await generateObject({ ...options, prompt, schema })
assert.deepEqual(object.object, { city: 'Oslo', degrees: 7 })
const partial = streamObject({ ...options, prompt, schema })
for await (const _ of partial.partialObjectStream);
assert.deepEqual(await partial.object, { city: 'Oslo', degrees: 7 })
console.log('ok structured output')

await assert.rejects(generateText({ ...options, model: provider('gpt-4o'), prompt }), (error) => {
  assert.equal(error.statusCode, 404)
  assert.match(error.message, /available/)
  return true
})
console.log('ok unknown model')

const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const messages = [{ role: 'user', content: prompt }]
const plain = await client.chat.completions.create({ model: 'assistant', messages })
assert.equal(plain.choices[0].message.content, 'hello')
text = ''
for await (const chunk of await client.chat.completions.create({ model: 'assistant', messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? ''
}
assert.equal(text, 'hello')
await assert.rejects(client.chat.completions.create({ model: 'assistant', messages, verbosity: 'low' }), (error) => {
  assert.deepEqual([error.status, error.code, error.param], [400, 'unsupported_parameter', 'verbosity'])
  return true
})
console.log('ok openai for Node')
