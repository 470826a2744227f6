/** A fetch that records chat completions. It works below OpenAI's client, so all of that client's methods are covered. */

import { CompletionReader, type CompletionRequest, isCompletionRequest } from './completion.js'
import type { Fetch } from './http.js'
import type { RecordedResponse } from './responses.js'

/** Options of `wrap` and `recordingFetch`. */
export interface RecordingOptions {
  /** Your id of the user who asks. Default: the request's `safety_identifier`, else its `user`. */
  readonly userId?: string | ((request: CompletionRequest) => string | undefined) | undefined
  /** Labels to record with every response, in addition to the request's `metadata`. */
  readonly metadata?: Readonly<Record<string, string>> | undefined
  /** Line of the responses; the default is the service's own. */
  readonly line?: string | undefined
  /** Called with every response that is recorded, once its answer is complete. */
  readonly onResponse?: ((response: RecordedResponse) => void) | undefined
  /** Function that sends the requests. Default: the client's own. */
  readonly fetch?: Fetch | undefined
}

/** Return a fetch that gives every chat completion that it sees to `record`. */
export function recordingFetch(record: (response: RecordedResponse) => void, options: RecordingOptions): Fetch {
  const send: Fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init))
  return async (input, init) => {
    const request = readRequest(String(input), init)
    const started = Date.now()
    const response = await send(input, init)
    if (request === undefined || !response.ok || response.body === null) return response
    const reader = new CompletionReader(request, started, {
      ...options,
      userId: typeof options.userId === 'function' ? options.userId(request) : options.userId,
    })
    const isStream = response.headers.get('content-type')?.includes('text/event-stream') ?? false
    return observed(response, new Observer(reader, isStream, finish))
  }

  function finish(response: RecordedResponse | undefined): void {
    if (response === undefined) return
    record(response)
    options.onResponse?.(response)
  }
}

function readRequest(url: string, init: RequestInit | undefined): CompletionRequest | undefined {
  if (init?.method?.toUpperCase() !== 'POST' || typeof init.body !== 'string') return undefined
  if (!/\/chat\/completions(\?|$)/.test(url)) return undefined
  try {
    const body: unknown = JSON.parse(init.body)
    return isCompletionRequest(body) ? body : undefined
  } catch {
    return undefined
  }
}

/** Reads an answer while it passes through, and reports the response once, when it ends. */
class Observer {
  readonly #decoder = new TextDecoder()
  #text = ''
  #ended = false

  constructor(
    private readonly reader: CompletionReader,
    private readonly isStream: boolean,
    private readonly finish: (response: RecordedResponse | undefined) => void,
  ) {}

  data(bytes: Uint8Array): void {
    if (this.#ended) return
    this.#guard(() => {
      this.#text += this.#decoder.decode(bytes, { stream: true })
      if (!this.isStream) return
      const lines = this.#text.split(/\r\n|\n|\r(?!$)/)
      this.#text = lines.pop() ?? ''
      for (const line of lines) this.#line(line)
    })
  }

  end(status: 'completed' | 'failed' | 'cancelled', error?: unknown): void {
    if (this.#ended) return
    this.#ended = true
    this.#guard(() => {
      // What an interrupted answer ends with may be half a line.
      if (status === 'completed' && this.isStream) this.#line(this.#text)
      else if (status === 'completed') this.reader.completion(JSON.parse(this.#text), Date.now())
      this.finish(this.reader.response(status, error, Date.now()))
    })
  }

  #line(line: string): void {
    if (!line.startsWith('data:')) return
    const data = line.slice(5).trim()
    if (data !== '[DONE]') {
      this.reader.chunk(JSON.parse(data), Date.now())
      return
    }
    // Clients may cancel what follows, which would look like a user who stopped the answer.
    this.#text = ''
    this.end('completed')
  }

  #guard(action: () => void): void {
    try {
      action()
    } catch (error) {
      // Whatever this answer is, the app must get it.
      console.warn('loopwright: an answer was not recorded:', error)
      this.#ended = true
    }
  }
}

/** Return the response with a body that shows each chunk to the observer as the app reads it. */
function observed(response: Response, observer: Observer): Response {
  const source = (response.body as ReadableStream<Uint8Array>).getReader()
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await source.read()
          if (done) {
            observer.end('completed')
            controller.close()
          } else {
            observer.data(value)
            controller.enqueue(value)
          }
        } catch (error) {
          observer.end(isAbort(error) ? 'cancelled' : 'failed', error)
          controller.error(error)
        }
      },
      async cancel(reason) {
        observer.end('cancelled')
        await source.cancel(reason)
      },
    },
    // Read nothing before the app does.
    { highWaterMark: 0 },
  )
  const { status, statusText, headers, url } = response
  const copy = new Response(body, { status, statusText, headers: withoutEncoding(headers) })
  Object.defineProperty(copy, 'url', { value: url })
  return copy
}

/** Return the headers of a body that fetch has already decompressed. */
function withoutEncoding(headers: Headers): Headers {
  const copy = new Headers(headers)
  copy.delete('content-encoding')
  copy.delete('content-length')
  return copy
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === 'AbortError'
}
