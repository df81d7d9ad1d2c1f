//! What the allocator is told, so that an agent that grew gives back what it no longer needs.
//!
//! glibc keeps an arena for each thread and raises, with each large block that is freed, the size from which blocks are
//! taken from the system one by one. An agent with tables of tens of megabytes that grow now and then would keep
//! the holes that they leave. But what carries chunks, up to 1 MiB, must not come from the system anew each time: its pages are
//! then faulted in one by one, which took a third of the processor time of a bulk transfer. (Measured: 500 MB read through a mount from a
//! peer, 0.61 s with these values, 0.80 with blocks of 256 KiB and more taken from the system. mimalloc: 0.56, but three
//! times the memory.)

/// Blocks from this size on are taken from the system and given back to it, in bytes: tables, not chunks (guess).
#[cfg(target_env = "gnu")]
const LARGE_BYTES: i32 = 2 << 20;
/// What an arena may keep at its end, in bytes: what a transfer has under way.
#[cfg(target_env = "gnu")]
const SPARE_BYTES: i32 = 16 << 20;
/// Arenas: most of the work is in one loop; others contend rarely (guess).
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 4;

/// Tells the allocator that this process is an agent. Once, at the start; with another allocator than glibc's it does
/// nothing.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt only sets parameters of the allocator, takes its own lock, and is called with parameters and
        // values that its manual page names. A refusal changes nothing.
        let done = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, SPARE_BYTES) == 1
                && libc::mallopt(libc::M_ARENA_MAX, ARENAS) == 1
        };
        if !done {
            tracing::debug!("the allocator did not take its parameters");
        }
    }
}
