//! Registration of event sources with the main loop.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};

/// An event subscriber of the main loop.
pub(crate) type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// Registers `events`, and logs a failure.
pub(crate) fn listen(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("an event source could not be registered: {error}");
    }
}
