//! The guest's serial port on this process's stdin and stdout.

mod input;
mod output;
mod terminal;

pub use input::{Input, Read};
pub use output::{Output, Pending};
pub use terminal::RawTerminal;
