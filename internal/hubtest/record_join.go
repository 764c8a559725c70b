package hubtest

import (
	"fmt"
	"strings"
	"time"
)

// joined says what a successful join of the device channel changed.
type joined struct {
	success     bool // the update-success routine ran
	newToGroup  bool // the orchestrator hears of it at once
	wasInflight bool // the row was deleted
}

// join stores what a device said when it joined. firmware is the product's,
// by uuid. Its errors are those of parseJoin; what was stored before the error
// stays stored, as on the real server.
func (r *record) join(now time.Time, p joinParams, firmware map[string]*Firmware, g *group) (joined, error) {
	var out joined
	had := r.inflight != nil
	out.success = r.identify(now, p, firmware)
	r.validation, r.reverted = p.validation, p.reverted
	r.api, r.apiText = p.api, p.apiText
	if !p.downloading {
		r.inflight = nil
	}
	out.wasInflight = had && r.inflight == nil
	var err error
	out.newToGroup, err = r.regroup(g)
	if err != nil {
		return out, err
	}
	if !r.stale {
		r.connected, r.lastSeen = true, now
	}
	return out, nil
}

// identify compares the metadata of a join with those on record. It reports
// whether the join was booked as a successful update.
func (r *record) identify(now time.Time, p joinParams, firmware map[string]*Firmware) bool {
	meta := p.meta
	if !meta.complete() {
		// A uuid the product knows is completed from the firmware table.
		if fw, ok := firmware[meta.UUID]; ok {
			meta = fw.metadata()
		} else if r.meta == nil {
			r.note("connected without any firmware metadata")
			return false
		} else {
			// Nothing new is stored, but nil is not "the same" either: the join
			// is booked as a success every time.
			r.succeed(false)
			return true
		}
	}
	switch {
	case r.meta == nil:
		r.meta = &meta
		r.note("firmware set to version %s", meta.Version)
		r.clearUpdate()
		return true
	case r.meta.UUID == meta.UUID:
		return false // other fields that changed are not stored
	}
	changed := !strings.EqualFold(r.meta.UUID, meta.UUID)
	r.meta = &meta
	r.succeed(changed)
	return true
}

// succeed books an update, whether or not the firmware changed.
func (r *record) succeed(changed bool) {
	r.successes++
	if !changed {
		r.falseSuccesses++
	}
	if r.inflight != nil && r.inflight.Deployment != 0 {
		r.groupUpdates++
	}
	r.note("firmware set to version %s", r.meta.Version)
	r.clearUpdate()
}

func (r *record) clearUpdate() {
	r.inflight, r.attempts, r.blockedUntil = nil, nil, time.Time{}
}

// regroup re-evaluates the membership. A version that is not semver makes the
// comparison with a version requirement raise, after the membership is lost.
func (r *record) regroup(g *group) (added bool, err error) {
	if r.meta == nil || g.release == "" {
		return false, nil
	}
	was := r.grouped
	r.grouped = false
	if r.product != "" || r.meta.Platform != g.platform || r.meta.Architecture != g.architecture {
		return false, nil
	}
	if g.VersionRequirement != "" {
		v, ok := parseSemver(r.meta.Version)
		if !ok {
			return false, fmt.Errorf("%w: version %q is not semver", errJoinCrashed, r.meta.Version)
		}
		if !v.satisfies(g.VersionRequirement) {
			return false, nil
		}
	}
	r.grouped = true
	return !was, nil
}
