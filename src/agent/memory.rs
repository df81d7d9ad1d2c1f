//! What the allocator is told, so that an agent that grew gives back what it no longer needs.
//!
//! glibc keeps an arena for each thread and raises, with each large block that is freed, the size from which blocks are
//! taken from the system one by one. An agent with tables of tens of megabytes that grow now and then would keep
//! the holes that they leave.

/// Blocks from this size on are taken from the system and given back to it, in bytes: tables, not rows (guess).
#[cfg(target_env = "gnu")]
const LARGE_BYTES: i32 = 256 << 10;
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
                && libc::mallopt(libc::M_ARENA_MAX, ARENAS) == 1
        };
        if !done {
            tracing::debug!("the allocator did not take its parameters");
        }
    }
}
