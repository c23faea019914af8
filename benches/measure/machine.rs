//! What the numbers were measured on.

/// Processor, cores, memory, kernel and load of this machine.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// Before anything was measured.
    pub(crate) load: String,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processor =
            text("/proc/cpuinfo").lines().find_map(|line| Some(line.strip_prefix("model name")?.to_owned()));
        Machine {
            processor: processor.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: kib_of(&text("/proc/meminfo"), "MemTotal:").unwrap_or(0) >> 10,
            kernel: text("/proc/sys/kernel/osrelease"),
            load: text("/proc/loadavg"),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { processor, cores, memory_mib, kernel, load } = self;
        write!(f, "{cores} × {processor}, {memory_mib} MiB, Linux {kernel}, load {load}")
    }
}

/// The number behind a name, in files of the kernel that count in KiB.
pub(crate) fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
