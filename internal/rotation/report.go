package rotation

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A Report is what a replica of outriggerd knows of the pods that it serves. Ten
// thousand pods fit into a ConfigMap.
type Report struct {
	// Replica is the pod that reports. What it says counts until Until, by its own clock.
	Replica string    `json:"replica"`
	Until   time.Time `json:"until"`
	// Generation is the one that the replica follows, Serving the authority of its
	// own certificate and ServingEnd when that ends.
	Generation int64     `json:"generation"`
	Serving    string    `json:"serving,omitempty"`
	ServingEnd time.Time `json:"servingEnd,omitzero"`
	// IntermediateEnd is when the first of those between it and its root ends.
	IntermediateEnd time.Time `json:"intermediateEnd,omitzero"`
	// Groups hold the pods of which the same is known.
	Groups []Group `json:"groups,omitempty"`
}

// A Group is pods of which the same is known.
type Group struct {
	// Trusts is the highest generation whose trust their proxies acknowledged, 0
	// where they have no stream here.
	Trusts    int64 `json:"trusts,omitempty"`
	Connected bool  `json:"connected,omitempty"`
	// Leaf is nil where none is known; its End is the soonest of the group.
	Leaf *Leaf `json:"leaf,omitempty"`
	// UIDs are those of the pods, sorted.
	UIDs []string `json:"uids"`
	// At is when each pod's leaf was signed or seen, in seconds since 1970; none
	// without a leaf.
	At []int64 `json:"at,omitempty"`
}

// A Known is what a replica knows of one pod.
type Known struct {
	UID       string
	Connected bool
	Trusts    int64
	Leaf      *Leaf
	// At is when the leaf was signed, or its pod showed it.
	At time.Time
}

// Gather makes the groups of a report.
func Gather(all []Known) []Group {
	type key struct {
		trusts                   int64
		connected                bool
		authority, domain, roots string
	}
	groups := map[key]*Group{}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Known) int { return cmp.Compare(a.UID, b.UID) })
	for _, known := range all {
		k := key{trusts: known.Trusts, connected: known.Connected}
		if known.Leaf != nil {
			k.authority, k.domain, k.roots = known.Leaf.Authority, known.Leaf.Domain, strings.Join(known.Leaf.Roots, " ")
		}
		group := groups[k]
		if group == nil {
			group = &Group{Trusts: known.Trusts, Connected: known.Connected}
			groups[k] = group
		}
		group.UIDs = append(group.UIDs, known.UID)
		if known.Leaf != nil && (group.Leaf == nil || known.Leaf.End.Before(group.Leaf.End)) {
			leaf := *known.Leaf
			group.Leaf = &leaf
		}
		if known.Leaf != nil {
			group.At = append(group.At, known.At.Unix())
		}
	}
	var out []Group
	for _, group := range groups {
		out = append(out, *group)
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Compare(a.UIDs[0], b.UIDs[0]) })
	return out
}

// Encode packs a report. Equal reports are equal bytes.
func (r Report) Encode() ([]byte, error) {
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	if err := json.NewEncoder(writer).Encode(r); err != nil {
		return nil, fmt.Errorf("pack a report: %w", err)
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("pack a report: %w", err)
	}
	return packed.Bytes(), nil
}

// maxReport bounds an unpacked report.
const maxReport = 16 << 20

// DecodeReport unpacks a report.
func DecodeReport(packed []byte) (Report, error) {
	var r Report
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return r, fmt.Errorf("unpack a report: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(reader, maxReport))
	if err != nil {
		return r, fmt.Errorf("unpack a report: %w", err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("unpack a report: %w", err)
	}
	return r, nil
}

// skew is how far apart the clocks of replicas may be. That a report counts for so much
// longer does no harm: a replica that says nothing more stays at its generation, and what
// a step does makes the next one.
const skew = 5 * time.Minute

// counts reports whether what a report says counts.
func (r Report) counts(now time.Time) bool { return now.Before(r.Until.Add(skew)) }

// Merge says of each pod what the reports know of it together, and of each replica
// whether it was heard. Reports that are over, or of replicas that do not run, are
// ignored. Where several replicas know a leaf, the one that was seen last counts.
func Merge(pods []Pod, replicas []string, reports []Report, now time.Time) Seen {
	seen := Seen{Pods: slices.Clone(pods)}
	at := make(map[string]int, len(pods))
	for i, pod := range pods {
		at[pod.UID] = i
	}
	for _, name := range replicas {
		replica := Replica{Name: name}
		i := slices.IndexFunc(reports, func(r Report) bool { return r.Replica == name && r.counts(now) })
		if i >= 0 {
			replica.Heard, replica.Generation, replica.Serving = true, reports[i].Generation, reports[i].Serving
			reports[i].tell(seen.Pods, at)
		}
		seen.Replicas = append(seen.Replicas, replica)
	}
	slices.SortFunc(seen.Pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(seen.Replicas, func(a, b Replica) int { return cmp.Compare(a.Name, b.Name) })
	return seen
}

// tell adds what the report knows.
func (r Report) tell(pods []Pod, at map[string]int) {
	for _, group := range r.Groups {
		for n, uid := range group.UIDs {
			i, ok := at[uid]
			if !ok {
				continue
			}
			pod := &pods[i]
			pod.Connected = pod.Connected || group.Connected
			pod.Trusts = max(pod.Trusts, group.Trusts)
			if group.Leaf == nil || n >= len(group.At) {
				continue
			}
			if at := group.At[n]; pod.Leaf == nil || at > pod.at || at == pod.at && pod.Leaf.Authority == "" {
				pod.Leaf, pod.at = group.Leaf, at
			}
		}
	}
}

// Ends are when the first certificate of each kind ends; zero where none is known.
type Ends struct {
	Intermediate time.Time `json:"intermediate,omitzero"`
	Serving      time.Time `json:"serving,omitzero"`
	Workload     time.Time `json:"workload,omitzero"`
}

// UsersIntermediate is when the first intermediate ends of which nobody but people
// takes care, because outriggerd reads it from a Secret; zero where there is none.
// Those of outside authorities are theirs to renew.
func UsersIntermediate(s State, ends Ends) time.Time {
	if t, ok := s.Find(s.Serving); ok && t.BuiltIn != nil {
		return ends.Intermediate
	}
	return time.Time{}
}

// SoonestEnds returns when the first certificates end, by reports that count and of
// pods that run.
func SoonestEnds(reports []Report, seen Seen, now time.Time) Ends {
	var ends Ends
	sooner := func(end *time.Time, other time.Time) {
		if !other.IsZero() && (end.IsZero() || other.Before(*end)) {
			*end = other
		}
	}
	for _, r := range reports {
		if r.counts(now) && slices.ContainsFunc(seen.Replicas, func(replica Replica) bool { return replica.Name == r.Replica }) {
			sooner(&ends.Intermediate, r.IntermediateEnd)
			sooner(&ends.Serving, r.ServingEnd)
		}
	}
	for _, pod := range seen.Pods {
		if pod.Leaf != nil {
			sooner(&ends.Workload, pod.Leaf.End)
		}
	}
	return ends
}
