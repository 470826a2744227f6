/**
 * JavaScript client for Loopwright: send users' feedback, record responses, and follow what became of them.
 *
 *     import { Loopwright } from 'loopwright'
 *
 *     const loop = new Loopwright()
 *     const sent = await loop.correct(completion.id, 'u-17', 'Wellington is the capital.')
 *     console.log((await loop.receipt(completion.id, sent.eventId)).detail)
 */

export { Loopwright, type OpenAIClient, type SendOptions } from './client.js'
export type { CompletionRequest } from './completion.js'
export {
  Conflict,
  Denied,
  Invalid,
  LoopwrightError,
  NotFound,
  Overloaded,
  Problem,
  type ProblemDocument,
  QueueFull,
  TimedOut,
  TokenFailed,
  Unavailable,
  Unreachable,
} from './errors.js'
export { newEventId } from './event-id.js'
export type {
  Accepted,
  Answer,
  Feedback,
  FeedbackFields,
  FeedbackKind,
  FeedbackOptions,
  Receipt,
  Statement,
} from './feedback.js'
export type { CallOptions, Fetch, TokenSource } from './http.js'
export type { RecordingOptions } from './openai.js'
export type { FlushReport, QueueBounds } from './queue.js'
export type { ChatMessage, Choice, Recorded, RecordedResponse, Usage } from './responses.js'
export type { Retry } from './retry.js'
export type { BackgroundFailure, LoopwrightOptions } from './settings.js'
