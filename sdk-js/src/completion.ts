/** Reads OpenAI's chat completions, whole or in chunks, into a response to record. No I/O and no clock. */

import { newEventId } from './event-id.js'
import type { ChatMessage, Choice, RecordedResponse } from './responses.js'

/** Version names that only Loopwright's inference has. It records its answers itself. */
const LOOPWRIGHT_VERSION = /^[a-z0-9][a-z0-9_-]{0,62}@(v[1-9][0-9]*|base)-[0-9a-f]{8}$/
const VALID_ID = /^[!-~]{1,128}$/
const MAX_CHOICES = 8
const MAX_ERROR = 2000

/** The body of a request for a chat completion. */
export interface CompletionRequest {
  readonly model?: string
  readonly messages: readonly ChatMessage[]
  readonly user?: string
  readonly safety_identifier?: string
  readonly metadata?: Readonly<Record<string, string>> | null
  readonly [field: string]: unknown
}

/** Return whether a JSON value is a request for a chat completion. */
export function isCompletionRequest(body: unknown): body is CompletionRequest {
  return typeof body === 'object' && body !== null && Array.isArray((body as CompletionRequest).messages)
}

interface Completion {
  readonly id?: string
  readonly model?: string
  readonly choices?: readonly CompletionChoice[]
  readonly usage?: { readonly prompt_tokens?: number; readonly completion_tokens?: number } | null
  readonly error?: { readonly message?: string } | null
}

interface CompletionChoice {
  readonly index?: number
  readonly finish_reason?: string | null
  /** In a whole completion. */
  readonly message?: Part | null
  /** In a chunk. */
  readonly delta?: Part | null
}

interface Part {
  readonly content?: string | null
  readonly refusal?: string | null
  readonly tool_calls?: readonly ToolCall[] | null
}

interface ToolCall {
  readonly index?: number
  readonly id?: string
  readonly function?: { readonly name?: string; readonly arguments?: string }
}

interface PartialChoice {
  text: string
  finishReason: string | undefined
  readonly calls: { id: string; name: string; arguments: string }[]
}

/** How a response is labelled. */
export interface Labels {
  readonly userId?: string | undefined
  readonly metadata?: Readonly<Record<string, string>> | undefined
  readonly line?: string | undefined
}

/** Collects one answer. */
export class CompletionReader {
  readonly #choices = new Map<number, PartialChoice>()
  #id: string | undefined
  #model: string | undefined
  #usage: Completion['usage']
  #error: string | undefined
  #firstTokenAt: number | undefined

  constructor(
    private readonly request: CompletionRequest,
    private readonly startedAt: number,
    private readonly labels: Labels,
  ) {}

  /** Take a whole completion. */
  completion(completion: Completion, now: number): void {
    this.#take(completion, now, (choice) => choice.message)
    // The time of the first token is known only of streams.
    this.#firstTokenAt = undefined
  }

  /** Take a chunk of a streamed completion. */
  chunk(chunk: Completion, now: number): void {
    this.#take(chunk, now, (choice) => choice.delta)
  }

  /** Return the response; undefined if it holds no answer, or if Loopwright's inference gave and recorded it. */
  response(
    status: 'completed' | 'failed' | 'cancelled',
    error: unknown,
    now: number,
  ): RecordedResponse | undefined {
    const version = this.#model ?? this.request.model ?? ''
    if (this.#choices.size === 0 || LOOPWRIGHT_VERSION.test(version)) return undefined
    const { userId, metadata, line } = this.labels
    const message = this.#error ?? (error === undefined ? undefined : String(error))
    const failed = status === 'failed' || this.#error !== undefined
    return {
      responseId: this.#id !== undefined && VALID_ID.test(this.#id) ? this.#id : newEventId(now),
      version: version.slice(0, 256) || 'unknown',
      messages: this.request.messages,
      choices: [...this.#choices].sort(([a], [b]) => a - b).map(([index, choice]) => finished(index, choice)),
      userId: userId ?? this.request.safety_identifier ?? this.request.user,
      status: failed ? 'failed' : status,
      error: failed ? message?.slice(0, MAX_ERROR) : undefined,
      metadata: { ...this.request.metadata, ...metadata },
      usage: { promptTokens: this.#usage?.prompt_tokens, completionTokens: this.#usage?.completion_tokens },
      latencyMs: now - this.startedAt,
      firstTokenMs: this.#firstTokenAt === undefined ? undefined : this.#firstTokenAt - this.startedAt,
      createdAt: new Date(now),
      line,
    }
  }

  #take(part: Completion, now: number, contentOf: (choice: CompletionChoice) => Part | null | undefined): void {
    if (part.error) this.#error = part.error.message ?? 'the stream ended with an error'
    this.#id ??= part.id
    this.#model ??= part.model
    this.#usage = part.usage ?? this.#usage
    for (const choice of part.choices ?? []) {
      const index = choice.index ?? 0
      if (index < MAX_CHOICES) this.#add(index, choice, contentOf(choice) ?? {}, now)
    }
  }

  #add(index: number, choice: CompletionChoice, content: Part, now: number): void {
    const known = this.#choices.get(index) ?? { text: '', finishReason: undefined, calls: [] }
    this.#choices.set(index, known)
    const text = content.content ?? content.refusal ?? ''
    if (text || content.tool_calls?.length) this.#firstTokenAt ??= now
    known.text += text
    known.finishReason = choice.finish_reason ?? known.finishReason
    content.tool_calls?.forEach((call, position) => {
      // A chunk repeats neither id nor name, and continues the arguments.
      const collected = (known.calls[call.index ?? position] ??= { id: '', name: '', arguments: '' })
      collected.id ||= call.id ?? ''
      collected.name += call.function?.name ?? ''
      collected.arguments += call.function?.arguments ?? ''
    })
  }
}

function finished(index: number, { text, finishReason, calls }: PartialChoice): Choice {
  const toolCalls = calls.map((call) => ({
    id: call.id,
    type: 'function',
    function: { name: call.name, arguments: call.arguments },
  }))
  return { index, text, finishReason, toolCalls: toolCalls.length > 0 ? toolCalls : undefined }
}
