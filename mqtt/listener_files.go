package mqtt

import "log/slog"

// otherFiles is how many open files are left for all but devices.
const otherFiles = 64

// roomFor is how many devices a process serves that may have so many open
// files: each takes a socket here, and one to NervesHub.
func roomFor(files int) int { return max(1, (files-otherFiles)/2) }

// warnOfFiles tells the operator if there is no room for all devices.
func warnOfFiles(log *slog.Logger, files, devices int) {
	if room := roomFor(files); room < devices {
		log.Warn("mqtt: this process may not open enough files for max_devices; raise LimitNOFILE of the service (ulimit -n)",
			"open_files", files, "needed", 2*devices+otherFiles, "devices", room, "max_devices", devices)
	}
}
