//! Target `chains`: malformed capability chains of VFIO's info structs.

use vfio_passthrough::backend::ranges_of_chain;

use crate::input::Input;

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let first = input.u32();
    let buffer = input.0;
    let found = ranges_of_chain(buffer, first);
    assert!(found.len() <= 64, "the walk of a chain ends");
    for ranges in found {
        assert!(ranges.len() <= buffer.len() / 16, "more ranges than the bytes can hold");
        assert!(ranges.iter().all(|range| range.start() <= range.end()));
    }
}
