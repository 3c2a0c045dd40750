//! The power button and others, which Linux reports as keys of input devices (linux/input-event-codes.h).

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::Report;
use nix::fcntl::OFlag;

use crate::report;
use crate::system::Error;

const FOLDER: &str = "/dev/input";
/// The size of `struct input_event` on 64 bits: 16 bytes of time, then type, code and value.
const EVENT: usize = 24;
const KEY: u16 = 1;
/// The power button, the first button of a mouse or a tablet, and a touch.
const BUTTONS: [u16; 3] = [116, 0x110, 0x14a];
const DOWN: i32 = 1;

/// Reports that the guest listens, and reports a press of the button within `time`.
pub fn wait_for(time: Duration) -> Result<(), Error> {
    let mut inputs = inputs()?;
    report::send(&Report::Button { pressed: false });
    let begin = Instant::now();
    while begin.elapsed() < time {
        if inputs.iter_mut().any(is_pressed) {
            report::send(&Report::Button { pressed: true });
            break;
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn inputs() -> Result<Vec<File>, Error> {
    let entries = fs::read_dir(FOLDER).map_err(Error::file("read", FOLDER))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let open = |path| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
    };
    Ok(paths.filter_map(|path| open(path).ok()).collect())
}

/// Reads the pending events; whether one of them is a press of a button.
fn is_pressed(input: &mut File) -> bool {
    let mut event = [0; EVENT];
    while input.read(&mut event).is_ok_and(|count| count == EVENT) {
        let [.., k0, k1, c0, c1, v0, v1, v2, v3] = event;
        let (kind, code) = (u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([c0, c1]));
        let is_button = kind == KEY && BUTTONS.contains(&code);
        if is_button && i32::from_ne_bytes([v0, v1, v2, v3]) == DOWN {
            return true;
        }
    }
    false
}
