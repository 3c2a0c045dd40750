//! The text that `lspci -xxxx` prints and `lspci -F` reads.

use std::fmt::Write as _;

use vfio_passthrough::PciAddress;

/// A function in a dump.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its address on its host.
    pub address: PciAddress,
    /// What lspci printed after the address.
    pub title: String,
    /// The sizes of the BARs and of the ROM, where lspci printed them; 0 elsewhere.
    pub sizes: [u64; 7],
    /// Its config space: 64, 256 or 4096 bytes.
    pub config: Vec<u8>,
}

/// The functions of a dump, in their order.
pub fn parse(text: &str) -> Vec<Function> {
    let mut found: Vec<Function> = Vec::new();
    for line in text.lines() {
        if let Some(function) = head(line) {
            found.push(function);
        } else if let Some(function) = found.last_mut() {
            add(function, line);
        }
    }
    found.retain(|function| !function.config.is_empty());
    found
}

/// The first line of a function: its address and its title.
fn head(line: &str) -> Option<Function> {
    let (address, title) = line.split_once(' ')?;
    let address = address.parse().ok()?;
    let title = title.to_owned();
    Some(Function { address, title, sizes: [0; 7], config: Vec::new() })
}

/// A line about a BAR, or of bytes.
fn add(function: &mut Function, line: &str) {
    let bar = bar_number(line.trim_start()).and_then(|bar| function.sizes.get_mut(bar));
    match (bar, bytes(line)) {
        (Some(size), _) => *size = size_in(line).unwrap_or(0),
        (None, Some((offset, bytes))) if offset == function.config.len() => {
            function.config.extend(bytes);
        }
        _ => {}
    }
}

fn bar_number(line: &str) -> Option<usize> {
    if line.starts_with("Expansion ROM at ") {
        return Some(6);
    }
    let (number, _) = line.strip_prefix("Region ")?.split_once(':')?;
    number.parse().ok()
}

/// The size in `[size=256K]`.
fn size_in(line: &str) -> Option<u64> {
    let (_, size) = line.split_once("[size=")?;
    let (size, _) = size.split_once(']')?;
    let digits = size.trim_end_matches(|unit: char| !unit.is_ascii_digit());
    let shift = match size.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 40,
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// The offset and the bytes of a line such as `10: 00 00 ...`.
fn bytes(line: &str) -> Option<(usize, Vec<u8>)> {
    let (offset, bytes) = line.split_once(": ")?;
    let offset = usize::from_str_radix(offset, 16).ok()?;
    let bytes = bytes.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
    Some((offset, bytes.collect::<Result<_, _>>().ok()?))
}

/// The lines of a function, for `lspci -F`.
pub fn print(address: PciAddress, config: &[u8]) -> String {
    let mut text = format!("{address} shown to a guest\n");
    for (offset, line) in (0..).step_by(16).zip(config.chunks(16)) {
        let bytes = line.iter().map(|byte| format!(" {byte:02x}")).collect::<String>();
        // Nothing fails in memory.
        let _ = writeln!(text, "{offset:02x}:{bytes}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00:02.0 VGA: a card\n\
        \tRegion 0: Memory at fea00000 (32-bit, non-prefetchable) [size=512K]\n\
        \tExpansion ROM at feb80000 [disabled] [size=2M]\n\
        00: f4 1a 00 10\n\
        04: 07 05\n\
        \n\
        0002:01:00.0 Class 0200: another\n\
        00: 01\n";

    #[test]
    fn reads_functions_their_sizes_and_bytes() {
        let [first, second] = parse(TEXT).try_into().unwrap();
        assert_eq!(first.address.to_string(), "0000:00:02.0");
        assert_eq!(first.sizes, [512 << 10, 0, 0, 0, 0, 0, 2 << 20]);
        assert_eq!(first.config, [0xf4, 0x1a, 0, 0x10, 7, 5]);
        assert_eq!(second.title, "Class 0200: another");
        assert_eq!((second.address.to_string(), second.config), ("0002:01:00.0".into(), vec![1]));
    }

    #[test]
    fn reads_what_it_prints() {
        let config: Vec<u8> = (0..=255).chain(0..=255).collect();
        let address = "0002:01:00.3".parse().unwrap();
        let [again] = parse(&print(address, &config)).try_into().unwrap();
        assert_eq!((again.address, again.config), (address, config));
    }
}
