//! Processor time, of this process and of the others.

/// Processor time of all threads of this process, RocksDB's own included.
pub(crate) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Processor time of all programs of this machine, as far as it is told; in hundredths of seconds, which every Linux
/// counts in.
pub(crate) fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let times: Vec<f64> = all.filter_map(|time| time.parse().ok()).collect();
    // User, nice and system; idle and waiting for the disk do not count, nor does what interrupts take.
    times.iter().take(3).sum::<f64>() / 100.0
}
