//! What waits for events on the main thread.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};

/// A subscriber of the main loop.
pub(crate) type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// Registers `events`, or logs why they will not be heard.
pub(crate) fn listen(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("an event source is not heard: {error}");
    }
}
