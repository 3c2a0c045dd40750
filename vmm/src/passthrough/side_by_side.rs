//! Acts on all devices at the same time. Opening, resetting and closing a device mostly waits for a
//! reset (100 ms for an FLR, PCIe 6.0, 6.6.2), so that all devices take as long as one.

use std::io;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle, scope};

/// The threads call the kernel, and format at most an error.
const STACK: usize = 256 << 10;

/// Calls `act` with all items at the same time, and returns the results in the items' order. The
/// calling thread has the last item.
pub(crate) fn side_by_side<T: Send, R: Send>(items: Vec<T>, act: impl Fn(T) -> R + Sync) -> Vec<R> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let Some((last, others)) = items.split_last() else {
        return Vec::new();
    };
    let act = |item: &Mutex<Option<T>>| {
        let item = item.lock().unwrap_or_else(PoisonError::into_inner).take();
        item.map(&act)
    };
    let act = &act;
    let results: Vec<Option<R>> = scope(|scope| {
        let thread = || Builder::new().name("device".into()).stack_size(STACK);
        let start = |item| (item, thread().spawn_scoped(scope, move || act(item)));
        let started: Vec<_> = others.iter().map(start).collect();
        let last = act(last);
        // If a thread did not start, its item waits for the calling thread.
        let join = |(item, thread): (_, io::Result<ScopedJoinHandle<'_, _>>)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => act(item),
        };
        started.into_iter().map(join).chain([last]).collect()
    });
    results.into_iter().flatten().collect()
}

/// Calls `background` in a thread, and `here` in the calling thread meanwhile.
pub(crate) fn meanwhile<A: Send, B>(
    background: impl FnOnce() -> A + Send,
    here: impl FnOnce() -> B,
) -> (Option<A>, B) {
    let background = Mutex::new(Some(background));
    let act = || {
        let act = background.lock().unwrap_or_else(PoisonError::into_inner).take();
        act.map(|act| act())
    };
    scope(|scope| {
        let thread = Builder::new().name("devices".into()).stack_size(STACK);
        match thread.spawn_scoped(scope, act) {
            Ok(thread) => {
                let own = here();
                (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), own)
            }
            Err(_) => (act(), here()),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn all_items_are_under_way_at_the_same_time() {
        let barrier = Barrier::new(16);
        let doubled = side_by_side((0..16).collect(), |item: u32| {
            barrier.wait();
            item * 2
        });
        assert_eq!(doubled, (0..16).map(|item| item * 2).collect::<Vec<_>>());
        assert!(side_by_side(Vec::new(), |item: u32| item).is_empty());
    }
}
