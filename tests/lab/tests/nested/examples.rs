//! The examples of `vfio-passthrough` run with an assigned NVMe.

use lab::protocol::{Ending, Program};
use lab::{Error, L1, place};

use crate::Test;
use crate::support::{assert_parts, assigned};

/// On a machine with an NVMe first.
pub const TESTS: &[Test] = &[("examples: each runs with an assigned NVMe", run_all)];

/// An example, and what it must print. `{device}` stands for the NVMe's address.
struct Example {
    /// The name, one of [`Arch::examples`](lab::Arch::examples).
    name: &'static str,
    /// The arguments.
    arguments: &'static [&'static str],
    /// Texts that the standard output must contain.
    output: &'static [&'static str],
}

const TABLE: &[Example] = &[
    Example {
        name: "attach",
        arguments: &["{device}", "6"],
        output: &["after 5: Held {", "after 6: Held {"],
    },
    Example {
        name: "lspci",
        arguments: &["{device}"],
        output: &["{device} 0108: 1b36:0010", "BAR0: ", "MSI-X", "ok: {device} has "],
    },
    Example {
        name: "minimal_vmm",
        arguments: &["{device}"],
        output: &["the guest read 0x", ", the start of BAR0, with ", "ok: "],
    },
    Example {
        name: "own_router",
        arguments: &["{device}"],
        output: &["routes: {", "ok: a route of the VMM's own and one of {device} delivered"],
    },
];

fn run_all(l1: &mut L1) -> Result<(), Error> {
    let has = l1.machine().arch().examples();
    let mut examples = TABLE.iter().filter(|example| has.contains(&example.name));
    assert_eq!(examples.clone().count(), has.len(), "the table has every example");
    let device = assigned(l1, 0)?;
    examples.try_for_each(|example| run(l1, example, &device))?;
    let by_iommufd = Example { arguments: &["{device}", "6", "iommufd"], ..TABLE[0] };
    if l1.machine().has_iommufd() { run(l1, &by_iommufd, &device) } else { Ok(()) }
}

fn run(l1: &mut L1, example: &Example, device: &str) -> Result<(), Error> {
    let with_device = |text: &&str| text.replace("{device}", device);
    let arguments = example.arguments.iter().map(with_device);
    let arguments = std::iter::once(place::example(example.name)).chain(arguments).collect();
    let run = l1.run(Program { arguments, ..Program::default() })?;
    let text = format!("{}: {}{}", example.name, run.stdout, run.stderr);
    assert_eq!(run.finished.ending, Ending::Status(0), "{text}");
    println!("{text}");
    let expected: Vec<_> = example.output.iter().map(with_device).collect();
    assert_parts(&run.stdout, &expected);
    Ok(())
}
