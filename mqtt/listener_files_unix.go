//go:build unix

package mqtt

import (
	"math"
	"syscall"
)

// openFiles is how many files, sockets included, this process may have open.
// Go has raised it to the hard limit.
func openFiles() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt
	}
	return int(min(uint64(l.Cur), math.MaxInt)) // infinity is the largest number
}
