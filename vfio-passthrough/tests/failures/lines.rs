//! What this thread logs.

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

/// Keeps what this thread logs from now on.
pub fn keep() {
    // The first test to come sets it.
    let _ = log::set_logger(&Keeper);
    log::set_max_level(log::LevelFilter::Warn);
    taken();
}

/// The lines since the last look.
pub fn taken() -> Vec<String> {
    LINES.take()
}
