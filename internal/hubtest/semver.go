package hubtest

import (
	"regexp"
	"strconv"
	"strings"
)

// A semver is a strict semantic version, as Elixir's Version parses one.
type semver struct {
	major, minor, patch int
	pre                 string
}

var semverPattern = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?$`)

func parseSemver(s string) (semver, bool) {
	m := semverPattern.FindStringSubmatch(s)
	if m == nil {
		return semver{}, false
	}
	var v semver
	v.major, _ = strconv.Atoi(m[1])
	v.minor, _ = strconv.Atoi(m[2])
	v.patch, _ = strconv.Atoi(m[3])
	v.pre = m[4]
	return v, true
}

// compare orders versions; a pre-release comes before its release.
func (v semver) compare(o semver) int {
	for _, d := range []int{v.major - o.major, v.minor - o.minor, v.patch - o.patch} {
		if d != 0 {
			return d
		}
	}
	switch {
	case v.pre == o.pre:
		return 0
	case v.pre == "":
		return 1
	case o.pre == "":
		return -1
	}
	return strings.Compare(v.pre, o.pre)
}

func (v semver) atLeast(major, minor, patch int) bool {
	return v.compare(semver{major: major, minor: minor, patch: patch}) >= 0
}

// satisfies checks a requirement of the form ">= 1.2.0 and < 2.0.0"; clauses
// it cannot read are not met.
func (v semver) satisfies(requirement string) bool {
	for clause := range strings.SplitSeq(requirement, " and ") {
		op, text, ok := strings.Cut(strings.TrimSpace(clause), " ")
		if !ok {
			op, text = "==", op
		}
		want, ok := parseSemver(strings.TrimSpace(text))
		if !ok || !holds(v.compare(want), op) {
			return false
		}
	}
	return true
}

func holds(cmp int, op string) bool {
	switch op {
	case "==":
		return cmp == 0
	case "!=":
		return cmp != 0
	case ">":
		return cmp > 0
	case ">=":
		return cmp >= 0
	case "<":
		return cmp < 0
	case "<=":
		return cmp <= 0
	}
	return false
}
