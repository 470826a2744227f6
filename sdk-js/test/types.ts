// Compiled, not run: what the type checker must accept and refuse. `npm run check`.
import OpenAI from 'openai'
import { type Accepted, Loopwright, Problem, type Receipt, type Statement, newEventId } from '../src/index.js'

const loop = new Loopwright({ feedbackUrl: 'http://x', retry: { attempts: 2 }, queue: { maxItems: 5 } })
const sent: Promise<Accepted> = loop.rate('r', 'u', 5, { choice: 1, signal: AbortSignal.timeout(5) })
const receipt: Promise<Receipt> = sent.then(({ eventId }) => loop.receipt('r', eventId))
const id: string = loop.enqueue({ responseId: 'r', userId: 'u', kind: 'preference', value: { over: 2 } })
new Loopwright({ token: async (responseId) => `lwt_${responseId}` })

// @ts-expect-error six stars
loop.rate('r', 'u', 6)
// @ts-expect-error the value belongs to another kind
loop.enqueue({ responseId: 'r', userId: 'u', kind: 'thumbs', value: 'better' })
// @ts-expect-error both answers
loop.prefer('r', 'u', 'over')
// @ts-expect-error no user
loop.send({ responseId: 'r', kind: 'comment', value: 'x' })
// @ts-expect-error unknown kind
const statement: Statement = { kind: 'star', value: 1 }

const openai: OpenAI = loop.wrap(new OpenAI({ apiKey: 'k' }), { userId: ({ user }) => user })
const stream = openai.chat.completions.create({ model: 'm', messages: [], stream: true })
const whole: Promise<string> = openai.chat.completions.create({ model: 'm', messages: [] }).then((answer) => answer.id)
new OpenAI({ fetch: loop.recordingFetch() })

try {
  await receipt
} catch (error) {
  if (error instanceof Problem) console.log(error.status, error.document.detail)
}
export { id, newEventId, statement, stream, whole }
