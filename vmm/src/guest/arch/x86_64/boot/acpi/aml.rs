//! AML encodings of the DSDT (ACPI 6.5, 20.2), and resource descriptors (ACPI 6.5, 6.4).

const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const MULTIPLE: u8 = 0x2f;
const STRING: u8 = 0x0d;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const PACKAGE: u8 = 0x12;
const METHOD: u8 = 0x14;
const EXTENDED: u8 = 0x5b;
const STORE: u8 = 0x70;
const AND: u8 = 0x7b;
const REGION: u8 = 0x80;
const FIELD: u8 = 0x81;
const DEVICE: u8 = 0x82;
const NOTIFY: u8 = 0x86;
const EQUAL: u8 = 0x93;
const IF: u8 = 0xa0;
const RETURN: u8 = 0xa4;
/// No target: the result is only the operation's value.
const NOWHERE: u8 = 0;

/// The method's first argument.
pub(super) const ARGUMENT: [u8; 1] = [0x68];
/// The method's local variables.
pub(super) const LOCALS: [[u8; 1]; 2] = [[0x60], [0x61]];

/// An object's name; shorter names are padded with `_`.
pub(super) type Segment = [u8; 4];

/// An integer in the shortest encoding.
pub(super) fn integer(value: u32) -> Vec<u8> {
    let bytes = value.to_le_bytes();
    let (prefix, size): (&[u8], usize) = match value {
        0 => (&[ZERO], 0),
        1 => (&[ONE], 0),
        2..=0xff => (&[BYTE], 1),
        0x100..=0xffff => (&[WORD], 2),
        _ => (&[DWORD], 4),
    };
    prefix.iter().chain(bytes.iter().take(size)).copied().collect()
}

/// A string, with its terminator.
pub(super) fn string(text: &str) -> Vec<u8> {
    [&[STRING], text.as_bytes(), &[0]].concat()
}

/// `EisaId("PNP....")`: three letters of 5 bits each, then four digits, the highest first (ACPI
/// 6.5, 19.6.36).
pub(super) fn pnp(number: u16) -> Vec<u8> {
    [&[DWORD, 0x41, 0xd0][..], &number.to_be_bytes()].concat()
}

/// `Name`: an object with a value.
pub(super) fn name(name: &Segment, value: &[u8]) -> Vec<u8> {
    [&[NAME][..], name, value].concat()
}

/// `Package`: a list.
pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let count = u8::try_from(elements.len()).unwrap_or(u8::MAX);
    sized(&[PACKAGE], &[&[count], elements.concat().as_slice()].concat())
}

/// `Scope`: the parent of the objects.
pub(super) fn scope(name: &Segment, objects: &[Vec<u8>]) -> Vec<u8> {
    sized(&[SCOPE], &[name, objects.concat().as_slice()].concat())
}

/// `Device`.
pub(super) fn device(name: &Segment, objects: &[Vec<u8>]) -> Vec<u8> {
    sized(&[EXTENDED, DEVICE], &[name, objects.concat().as_slice()].concat())
}

/// `Method`, serialized.
pub(super) fn method(name: &Segment, arguments: u8, body: &[u8]) -> Vec<u8> {
    const SERIALIZED: u8 = 1 << 3;
    sized(&[METHOD], &[&name[..], &[arguments & 7 | SERIALIZED], body].concat())
}

/// The path of an object below the root.
pub(super) fn path(segments: &[Segment]) -> Vec<u8> {
    let count = u8::try_from(segments.len()).unwrap_or(u8::MAX);
    [&[b'\\', MULTIPLE, count], segments.as_flattened()].concat()
}

/// `Notify` of the object at a path, or with a name in this scope.
pub(super) fn notify(object: &[u8], value: u8) -> Vec<u8> {
    [&[NOTIFY], object, &integer(value.into())].concat()
}

/// `Store` of a value in a variable or register.
pub(super) fn store(value: &[u8], target: &[u8]) -> Vec<u8> {
    [&[STORE], value, target].concat()
}

/// `And` of two values.
pub(super) fn and(one: &[u8], other: &[u8]) -> Vec<u8> {
    [&[AND], one, other, &[NOWHERE]].concat()
}

/// `LEqual`: whether two values are equal.
pub(super) fn equal(one: &[u8], other: &[u8]) -> Vec<u8> {
    [&[EQUAL], one, other].concat()
}

/// `If`.
pub(super) fn when(condition: &[u8], body: &[u8]) -> Vec<u8> {
    sized(&[IF], &[condition, body].concat())
}

/// `Return`.
pub(super) fn back(value: &[u8]) -> Vec<u8> {
    [&[RETURN], value].concat()
}

/// `OperationRegion` of ports, and a `Field` of registers of 32 bits in it, in ascending order.
pub(super) fn registers(region: &Segment, base: u16, names: &[&Segment]) -> Vec<u8> {
    const PORTS: u8 = 1;
    const DWORD_ACCESS: u8 = 3;
    const BITS: u8 = 32;
    let size = u32::try_from(names.len().saturating_mul(4)).unwrap_or(u32::MAX);
    let (base, size) = (integer(base.into()), integer(size));
    let region_of_ports = [&[EXTENDED, REGION], &region[..], &[PORTS], &base, &size].concat();
    let units: Vec<u8> = names.iter().flat_map(|name| [&name[..], &[BITS]].concat()).collect();
    let field = sized(&[EXTENDED, FIELD], &[&region[..], &[DWORD_ACCESS], &units].concat());
    [region_of_ports, field].concat()
}

/// `ResourceTemplate`: a buffer of descriptors, with an end tag that has no checksum.
pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    const END: [u8; 2] = [0x79, 0];
    let descriptors = [descriptors.concat().as_slice(), &END].concat();
    let size = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
    sized(&[BUFFER], &[integer(size), descriptors].concat())
}

/// Inserts the package length between opcode and content (ACPI 6.5, 20.2.4). The length counts its
/// own bytes.
fn sized(opcode: &[u8], content: &[u8]) -> Vec<u8> {
    let length = |own: usize| content.len().saturating_add(own);
    // Longer than one byte: the first byte has the low 4 bits and the number of further bytes.
    let long = |more: usize| {
        let length = length(more.saturating_add(1));
        let first = (more << 6 | length & 0xf) as u8;
        let rest = (length >> 4).to_le_bytes();
        [first].into_iter().chain(rest.into_iter().take(more)).collect::<Vec<u8>>()
    };
    let encoded = match content.len() {
        0..=62 => vec![length(1) as u8],
        63..=4093 => long(1),
        4094..=1_048_572 => long(2),
        _ => long(3),
    };
    [opcode, &encoded, content].concat()
}

/// An edge-triggered, active-high, exclusive interrupt.
pub(super) fn interrupt(gsi: u32) -> Vec<u8> {
    const CONSUMER_EDGE: u8 = 0b11;
    [&[0x89, 6, 0, CONSUMER_EDGE, 1], &gsi.to_le_bytes()[..]].concat()
}

/// `size` ports starting at `base`.
pub(super) fn ports(base: u16, size: u8) -> Vec<u8> {
    const DECODES_16_BITS: u8 = 1;
    let base = base.to_le_bytes();
    [&[0x47, DECODES_16_BITS], &base[..], &base, &[0, size]].concat()
}

/// Writable memory.
pub(super) fn memory(base: u32, size: u32) -> Vec<u8> {
    [&[0x86, 9, 0, 1], &base.to_le_bytes()[..], &size.to_le_bytes()].concat()
}

/// The flags of a bridge's window: both ends are fixed.
const FIXED: u8 = 0b1100;

/// The bus number window: bus 0.
pub(super) fn bus_window() -> Vec<u8> {
    word_window(2, 0, 0, 0)
}

/// The port window of a bridge.
pub(super) fn port_window(first: u16, last: u16) -> Vec<u8> {
    const ENTIRE_RANGE: u8 = 0b11;
    word_window(1, ENTIRE_RANGE, first, last)
}

fn word_window(kind: u8, flags: u8, first: u16, last: u16) -> Vec<u8> {
    let length = last.saturating_sub(first).saturating_add(1);
    let numbers = [0, first, last, 0, length].map(u16::to_le_bytes);
    [&[0x88, 13, 0, kind, FIXED, flags], numbers.as_flattened()].concat()
}

/// The memory window of a bridge: not cacheable, writable.
pub(super) fn memory_window(first: u64, last: u64) -> Vec<u8> {
    const WRITABLE: u8 = 1;
    let length = last.saturating_sub(first).saturating_add(1);
    let numbers = [0, first, last, 0, length].map(u64::to_le_bytes);
    [&[0x8a, 43, 0, 0, FIXED, WRITABLE], numbers.as_flattened()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_use_the_shortest_encoding() {
        let cases: [(u32, &[u8]); 6] = [
            (0, &[0]),
            (1, &[1]),
            (0xff, &[0x0a, 0xff]),
            (0x100, &[0x0b, 0, 1]),
            (0xffff, &[0x0b, 0xff, 0xff]),
            (0x1_0000, &[0x0c, 0, 0, 1, 0]),
        ];
        for (value, bytes) in cases {
            assert_eq!(integer(value), bytes);
        }
    }

    /// The limits of the specification: up to 63, 4095 and 1048575 bytes in one, two and three
    /// bytes.
    #[test]
    fn a_length_counts_itself() {
        let encoded = |size: usize| {
            let bytes = sized(&[], &vec![0xee; size]);
            bytes[..bytes.len() - size].to_vec()
        };
        assert_eq!(encoded(0), [1]);
        assert_eq!(encoded(62), [63]);
        assert_eq!(encoded(63), [0x41, 0x04]);
        assert_eq!(encoded(4093), [0x4f, 0xff]);
        assert_eq!(encoded(4094), [0x81, 0x00, 0x01]);
        assert_eq!(encoded(1_048_572), [0x8f, 0xff, 0xff]);
        assert_eq!(encoded(1_048_573), [0xc1, 0x00, 0x00, 0x01]);
    }

    #[test]
    fn compresses_a_pnp_id() {
        assert_eq!(pnp(0x0a08), [0x0c, 0x41, 0xd0, 0x0a, 0x08]);
    }
}
