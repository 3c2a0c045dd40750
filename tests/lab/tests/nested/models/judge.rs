//! What QEMU recorded of a device.

/// The size of the header of a WAV file.
const HEADER: usize = 44;

/// Whether a WAV file has a second of the tone that the guest plays, at 44100 Hz with 2 channels of
/// 16 bits: the wave swings, and crosses zero 500 times a second.
pub fn is_tone(wav: &[u8]) -> bool {
    let frames = wav.get(HEADER..).unwrap_or_default().chunks_exact(4);
    let left: Vec<i16> = frames.map(|frame| i16::from_le_bytes([frame[0], frame[1]])).collect();
    let loud: Vec<i16> = left.into_iter().filter(|sample| sample.unsigned_abs() > 2000).collect();
    let crossings = loud.windows(2).filter(|pair| (pair[0] < 0) != (pair[1] < 0)).count();
    loud.len() >= 44_100 / 2 && (400..1200).contains(&crossings)
}

/// Whether nine of ten pixels of a PPM file have the colour with which the guest fills its screen.
/// A display of 16 bits rounds.
pub fn is_coloured(ppm: &[u8]) -> bool {
    let mut lines = ppm.splitn(4, |byte| *byte == b'\n');
    let Some(pixels) = lines.nth(3) else { return false };
    let near = |own: u8, other: u8| own.abs_diff(other) <= 8;
    let is_right =
        |pixel: &&[u8]| near(pixel[0], 0xe0) && near(pixel[1], 0x60) && near(pixel[2], 0x20);
    let right = pixels.chunks_exact(3).filter(is_right).count();
    right > 1000 && right * 10 >= pixels.len() / 3 * 9
}
