//! Processes: started with a cleared environment, bounded, and ended whole.
