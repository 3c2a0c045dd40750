//! Compares the model with the running kernel: the checks on both, then random sequences in step.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use conformance::{Scene, checks, linux::Linux, map_cost, map_sizes, random};
use serde::Serialize;

/// Compares the model of /dev/vfio with this machine's kernel.
///
/// All devices of the groups must be unused, and have vfio-pci, a stub or no driver.
#[derive(Parser)]
struct Arguments {
    /// A device that is bound to vfio-pci, as 0000:00:02.0; the program uses its whole group.
    #[arg(long = "device", required = true)]
    devices: Vec<String>,
    /// The number of random sequences of 50 calls.
    #[arg(long, default_value_t = 2000)]
    sequences: u64,
    /// The seed of the first sequence; the next sequences have the next numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Skip the checks.
    #[arg(long)]
    only_random: bool,
    /// Only measure how long the library and the bare ioctl take to map 512 MiB for DMA. Needs two
    /// devices of different groups.
    #[arg(long)]
    map_cost: bool,
    /// Only measure how long the kernel takes to map so many GiB for DMA, by type1 and by iommufd.
    /// Needs two devices of different groups.
    #[arg(long, value_delimiter = ',')]
    map_sizes: Vec<u64>,
}

/// The output, as one line.
#[derive(Serialize)]
struct Summary {
    kernel: &'static str,
    seed: u64,
    /// The results on the model and on the running kernel.
    checks: Option<[checks::Results; 2]>,
    random: random::Report,
}

impl Summary {
    fn is_success(&self) -> bool {
        let checks = self.checks.iter().flatten();
        checks.into_iter().all(|results| results.failed.is_empty())
            && self.random.differences.is_empty()
    }
}

/// The number of sequences between two lines of progress.
const PROGRESS: u64 = 50;

fn compare(arguments: &Arguments) -> std::io::Result<Summary> {
    let begin = Instant::now();
    let mut linux = Linux::default();
    let scene = Scene::of_this_machine(&mut linux, &arguments.devices)?;
    eprintln!("conformance: {:?}", scene.description);
    let mut model = scene.description.clone().build();
    let checks = (!arguments.only_random)
        .then(|| [checks::run(&mut model, &scene), checks::run(&mut linux, &scene)]);
    let mut random = random::Report::default();
    for number in 0..arguments.sequences {
        if number.is_multiple_of(PROGRESS) {
            let (seconds, differences) = (begin.elapsed().as_secs_f64(), random.differences.len());
            eprintln!("conformance: {number} sequences, {differences} differences, {seconds:.1} s");
        }
        let seed = arguments.seed.wrapping_add(number);
        random::run(seed, &scene, &mut model, &mut linux, &mut random);
    }
    Ok(Summary { kernel: scene.description.kernel.version(), seed: arguments.seed, checks, random })
}

fn print_comparison(arguments: &Arguments) -> std::io::Result<bool> {
    let summary = compare(arguments)?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(summary.is_success())
}

/// Prints the times of mappings.
fn print_map_cost(devices: &[String]) -> std::io::Result<bool> {
    let [bare, library] = devices else {
        return Err(std::io::Error::other("give two devices, of different groups"));
    };
    let [bare, library] =
        [bare, library].map(|device| device.parse().map_err(std::io::Error::other));
    let report = map_cost::measure(bare?, library?)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(true)
}

/// Prints the times of mappings of different sizes.
fn print_map_sizes(devices: &[String], gibs: &[u64]) -> std::io::Result<bool> {
    let [type1, iommufd] = devices else {
        return Err(std::io::Error::other("give two devices, of different groups"));
    };
    let [type1, iommufd] =
        [type1, iommufd].map(|device| device.parse().map_err(std::io::Error::other));
    let rows = map_sizes::measure(type1?, iommufd?, gibs)?;
    println!("{}", serde_json::to_string(&rows)?);
    Ok(true)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printed = if arguments.map_cost {
        print_map_cost(&arguments.devices)
    } else if !arguments.map_sizes.is_empty() {
        print_map_sizes(&arguments.devices, &arguments.map_sizes)
    } else {
        print_comparison(&arguments)
    };
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
