//! No reference to a function's windows or device can outlive the function.

use vfio_passthrough::PassthroughFunction;
use vfio_passthrough::function::Error;

fn take(function: PassthroughFunction) -> Result<(), Error> {
    let _bars = function.bars();
    drop(function);
    let _windows = function.state.lock();
    function.reset().1
}

fn borrow(function: PassthroughFunction) -> usize {
    let bars = function.bars();
    drop(function);
    bars.len()
}

fn main() {}
