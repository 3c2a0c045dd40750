//! Collects the log of this thread.

use std::cell::RefCell;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// Starts to collect this thread's log, and drops earlier lines.
pub fn keep() {
    // The first test sets the logger. It fails in the others.
    let _ = log::set_logger(&Keeper);
    log::set_max_level(log::LevelFilter::Warn);
    taken();
}

/// The lines since the last call.
pub fn taken() -> Vec<String> {
    LINES.take()
}
