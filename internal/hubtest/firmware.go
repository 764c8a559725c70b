package hubtest

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
)

// A Firmware is an artifact uploaded to the product.
type Firmware struct {
	UUID, Product, Version, Platform, Architecture string
	Author, Description, Misc, VCSIdentifier       string // sent as null when empty
	Extension                                      string // of the file behind the URL: "fw" when empty, or "bin"
	Image                                          []byte // what the URL serves

	Size     int      // bytes; of Image when 0
	Checksum string   // SHA-256 in upper-case hex; of Image when empty
	Partials []string // the same of each 1 MiB piece; of Image when nil
}

const pieceSize = 1 << 20 // bytes between two partial checksums

func (f *Firmware) complete() {
	f.Extension = cmp.Or(f.Extension, "fw")
	f.Size = cmp.Or(f.Size, len(f.Image))
	f.Checksum = cmp.Or(f.Checksum, checksum(f.Image))
	if f.Partials != nil {
		return
	}
	f.Partials = []string{}
	for at := 0; at < len(f.Image); at += pieceSize {
		f.Partials = append(f.Partials, checksum(f.Image[at:min(at+pieceSize, len(f.Image))]))
	}
}

func checksum(b []byte) string { return fmt.Sprintf("%X", sha256.Sum256(b)) }

func (f *Firmware) metadata() Metadata {
	return Metadata{UUID: f.UUID, Product: f.Product, Version: f.Version, Platform: f.Platform, Architecture: f.Architecture}
}

func (f *Firmware) path() string { return "/firmware/1/" + f.UUID + "." + f.Extension }

// updatePayload is the payload of an update event. deployment 0 is a manual push.
func (f *Firmware) updatePayload(webURL string, deployment int) map[string]any {
	return map[string]any{
		"update_available": true,
		"firmware_url":     webURL + f.path(),
		"firmware_meta": map[string]any{
			"uuid": f.UUID, "product": f.Product, "version": f.Version,
			"platform": f.Platform, "architecture": f.Architecture,
			"author": null(f.Author), "description": null(f.Description),
			"misc": null(f.Misc), "vcs_identifier": null(f.VCSIdentifier),
		},
		"size": f.Size, "checksum": f.Checksum, "partials_checksums": f.Partials,
		"deployment_id": null(deployment),
	}
}

// null is v, or JSON null for a zero value.
func null[T comparable](v T) any {
	var zero T
	if v == zero {
		return nil
	}
	return v
}

// An Archive is a signed file of a release that is not firmware.
type Archive struct {
	UUID, Version, Platform, Architecture string
	Description                           string // sent as null when empty
	UploadedAt                            time.Time
	Image                                 []byte
	Size                                  int // bytes; of Image when 0
}

func (a *Archive) path() string { return "/uploads/archives/" + a.UUID + ".fw" }

func (a *Archive) payload(webURL string) map[string]any {
	return map[string]any{
		"size": cmp.Or(a.Size, len(a.Image)), "uuid": a.UUID, "version": a.Version,
		"description": null(a.Description), "platform": a.Platform, "architecture": a.Architecture,
		"uploaded_at": a.UploadedAt.UTC().Format("2006-01-02T15:04:05"),
		"url":         webURL + a.path(),
	}
}

// A Group holds the settings of the deployment group; a zero field has the
// server's default.
type Group struct {
	ID                 int           // deployment_id in `update`; 1
	VersionRequirement string        // like ">= 1.2.0 and < 2.0.0"; any version when empty
	FailureThreshold   int           // attempts since the last success that park a device; 3
	FailureRateAmount  int           // attempts within FailureRateWindow that park it; 5
	FailureRateWindow  time.Duration // 180 s
	Penalty            time.Duration // length of an automatic block; 24 h
	Concurrent         int           // updates at a time; 10
	ConnectingCode     string        // pushed as scripts/run after every join, when not empty
}

// A group is the deployment group with its current release. Hub.mu guards it.
type group struct {
	Group
	release                string // uuid; empty until the first release
	platform, architecture string
	archive                *Archive
}

func newGroup(g Group) group {
	g.ID = cmp.Or(g.ID, 1)
	g.FailureThreshold = cmp.Or(g.FailureThreshold, 3)
	g.FailureRateAmount = cmp.Or(g.FailureRateAmount, 5)
	g.FailureRateWindow = cmp.Or(g.FailureRateWindow, 180*time.Second)
	g.Penalty = cmp.Or(g.Penalty, 24*time.Hour)
	g.Concurrent = cmp.Or(g.Concurrent, 10)
	g.VersionRequirement = strings.TrimSpace(g.VersionRequirement)
	return group{Group: g}
}
