package scenario

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/internal/ingest"
)

// FuzzBuild hunts for objects that make Build panic: those of the stories, with
// odd values in some of their fields. The API server refuses many of them, but
// manifests are read without one too.
func FuzzBuild(f *testing.F) {
	stories := Stories(f)
	for i := range stories {
		for seed := range 20 {
			f.Add(uint(i), uint64(seed))
		}
	}
	f.Fuzz(func(t *testing.T, story uint, seed uint64) {
		s := stories[story%uint(len(stories))]
		objs := deepCopy(s.Objects)
		rng := rand.New(rand.NewPCG(seed, 0))
		m := mutator{rng: rng, oneIn: 2 + rng.IntN(200)}
		m.mutate(reflect.ValueOf(&objs).Elem())
		snap, _ := ingest.Build(objs, s.Options)
		for _, id := range snap.Proxies() {
			if _, ok := snap.View(id); !ok {
				t.Errorf("proxy %s has no view", id)
			}
		}
	})
}

// A mutator changes one value in so many.
type mutator struct {
	rng   *rand.Rand
	oneIn int
}

func (m *mutator) mutate(v reflect.Value) {
	hit := m.rng.IntN(m.oneIn) == 0
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				m.mutate(f)
			}
		}
	case reflect.Pointer:
		if hit && !inList(v) {
			v.SetZero()
		} else if !v.IsNil() {
			m.mutate(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			m.mutate(v.Index(i))
		}
		if hit && v.Len() > 0 { // twice the same
			v.Set(reflect.Append(v, v.Index(m.rng.IntN(v.Len()))))
		}
	case reflect.Map:
		if hit && v.Len() > 0 && v.Type().Elem().Kind() == reflect.String {
			keys := v.MapKeys()
			slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
			v.SetMapIndex(keys[m.rng.IntN(len(keys))], reflect.ValueOf(m.word()).Convert(v.Type().Elem()))
		}
	case reflect.String:
		if hit {
			v.SetString(m.word())
		}
	case reflect.Int32, reflect.Int64, reflect.Int:
		if hit {
			odd := []int64{-1, 0, 1, 53, 80, 8080, 15001, 65535, 65536, math.MaxInt32, math.MinInt32}
			v.SetInt(odd[m.rng.IntN(len(odd))])
		}
	case reflect.Bool:
		if hit {
			v.SetBool(!v.Bool())
		}
	default:
	}
}

// inList reports whether v is one of the objects themselves, which are never nil.
func inList(v reflect.Value) bool {
	_, ok := v.Interface().(interface{ GetName() string })
	return ok
}

func (m *mutator) word() string {
	words := []string{
		"", ".", "..", "/", "*", "(", ".*", "a", "shop", "data", "store", "web", "app", "default", "kubernetes", "None", "enabled",
		"10.96.0.1", "::ffff:10.1.1.1", "fe80::1%eth0", "not an address", "ServiceAccount", "HTTPRouteGroup", "TCPRoute", "Pod",
		"TCP", "UDP", "ExternalName", "store.shop", "store.shop.svc.cluster.local", "\x00", "\xff", "outrigger-proxy",
	}
	return words[m.rng.IntN(len(words))]
}
