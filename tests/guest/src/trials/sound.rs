//! Sound, by the kernel's OSS emulation: 8000 samples of 8 bits a second on one channel.

use std::io::Write as _;
use std::time::Instant;

use nix::libc;

use super::{ioctl, open, wait_for};
use crate::system::Error;

const DEVICE: &str = "/dev/dsp";
const MIXER: &str = "/dev/mixer";
/// The channels of the mixer, of which a device has some (linux/soundcard.h).
const CHANNELS: libc::c_ulong = 25;
/// MIXER_WRITE(0).
const SET_VOLUME: libc::c_ulong = 0xc004_4d00;
/// Full volume, left and right.
const FULL: libc::c_int = 100 << 8 | 100;
/// SNDCTL_DSP_SYNC: waits until all samples were played.
const SYNC: libc::c_ulong = 0x5001;
/// Two seconds, which is more than the device's buffer.
const SAMPLES: usize = 16_000;

/// Plays a square wave of 250 Hz.
pub fn play() -> Result<String, Error> {
    wait_for("/dev", "dsp")?;
    turn_up();
    let wave: Vec<u8> = (0..SAMPLES).map(|at| if at & 16 == 0 { 0x20 } else { 0xe0 }).collect();
    let (mut file, begin) = (open(DEVICE)?, Instant::now());
    file.write_all(&wave).map_err(Error::file("write", DEVICE))?;
    ioctl(&file, SYNC, &mut 0).map_err(Error::file("play", DEVICE))?;
    Ok(format!("{} ms", begin.elapsed().as_millis()))
}

/// Turns up all channels: most devices start silent. Some devices have no mixer.
fn turn_up() {
    if let Ok(mixer) = open(MIXER) {
        for channel in 0..CHANNELS {
            // It fails for a channel that the device does not have.
            let _ = ioctl(&mixer, SET_VOLUME | channel, &mut FULL.clone());
        }
    }
}
