/** Texts of the widget. */

/** All texts that users see or hear. Any of them can be replaced: see `FeedbackElement.texts`. */
export const ENGLISH = {
  label: 'Feedback on this answer',
  up: 'Good answer',
  down: 'Bad answer',
  suggest: 'Suggest a better answer',
  question: 'What should it have said?',
  send: 'Send',
  cancel: 'Cancel',
  thumbs: 'Thank you.',
  correction: 'Thank you. Your answer was sent.',
  retract: 'Feedback withdrawn.',
  failed: 'Your feedback was not sent.',
  refused: 'Your feedback was not accepted.',
  retry: 'Try again',
}

export type Texts = typeof ENGLISH
