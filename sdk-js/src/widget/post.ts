/** Sends one event of the widget, with a few retries: the user waits for it. */

const ATTEMPTS = 4
const LONGEST_WAIT_S = 5

/** What the service answered. `status` is 0 if it did not. */
export interface Answer {
  readonly status: number
  readonly json?: unknown
}

/** Whether the service may take the same event later. */
export function mayHelpLater(status: number): boolean {
  return status === 0 || status === 429 || status > 500
}

/** Post a JSON body, again if that may help, and return the last answer. Never rejects. */
export async function post(url: string, token: string | null, body: string): Promise<Answer> {
  for (let attempt = 1; ; attempt++) {
    let waitS = 2 ** attempt * (0.1 + Math.random() / 5)
    let answer: Answer = { status: 0 }
    try {
      const response = await fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) },
        body,
        // The event arrives even if the user leaves the page. Browsers take 64 KiB at most.
        keepalive: body.length < 2e4,
        signal: AbortSignal.timeout(1e4),
      })
      waitS = Number(response.headers.get('retry-after')) || waitS
      answer = { status: response.status, json: await response.json() }
    } catch {
      // No answer, or one without JSON: what is known of it is in `answer`.
    }
    if (attempt === ATTEMPTS || !mayHelpLater(answer.status)) return answer
    await new Promise((resolve) => setTimeout(resolve, Math.min(waitS, LONGEST_WAIT_S) * 1000))
  }
}
