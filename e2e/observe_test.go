//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// logged waits for a line of a pod's access log with those fields.
func logged(t *testing.T, pod corev1.Pod, want map[string]string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		text, err := cluster.Logs(ctx, pod, "outrigger-proxy")
		if err != nil {
			return err
		}
		nearest, most := "", -1
		for line := range strings.Lines(text) {
			var fields map[string]any
			if json.Unmarshal([]byte(line), &fields) != nil || fields["direction"] == nil {
				continue
			}
			alike := 0
			for field, value := range want {
				if fields[field] != nil && strings.Contains(fmt.Sprint(fields[field]), value) {
					alike++
				}
			}
			if alike == len(want) {
				return nil
			}
			if alike > most {
				nearest, most = line, alike
			}
		}
		return fmt.Errorf("no line of the access log has %v; the nearest is %s", want, nearest)
	})
}

// TestDenialsAreExplainedInTheAccessLog has a server deny a request and a
// connection, and looks up who was denied by what.
func TestDenialsAreExplainedInTheAccessLog(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	// The friend may call something, so that its own proxy lets it try.
	apply(t, "%s---\n%s", routes(s.ns, "ok", "{name: ok, pathRegex: /ok}"), target(s.ns, "server", "HTTPRouteGroup/ok/ok", s.callers+"/friend"))
	consecutive(t, s.friend, s.url("/ok"), "200", 5)
	consecutive(t, s.friend, s.url("/admin"), "403", 5)
	answersNow(t, s.stranger, s.url("/ok"), 403)

	both := map[string]string{"caller": spiffe(s.callers, "friend"), "server": spiffe(s.ns, "server"), "path": "/admin"}
	denied := maps.Clone(both)
	maps.Copy(denied, map[string]string{"direction": "inbound", "decision": "denied", "reason": "no grant matched", "status": "403", "policy": "enforced"})
	logged(t, s.server, denied)
	// Whom no policy names is denied by its own proxy, which says so.
	logged(t, s.stranger, map[string]string{"direction": "outbound", "caller": spiffe(s.callers, "stranger"), "status": "403"})
}

// TestMetricsNameBothSides is OSM's row 28 in our words: exactly five requests are
// counted, at both sides, with who called whom and what came of it.
func TestMetricsNameBothSides(t *testing.T) {
	t.Parallel()
	s := openShop(t)
	outside := namespace(t, "outside", outsideMesh)
	scraper := caller("scraper").run(t, outside)
	apply(t, "%s---\n%s", routes(s.ns, "ok", "{name: ok, pathRegex: /ok}"), target(s.ns, "server", "HTTPRouteGroup/ok/ok", s.callers+"/friend"))
	consecutive(t, s.friend, s.url("/ok"), "200", 5)
	consecutive(t, s.friend, s.url("/admin"), "403", 5)

	both := []string{`source="` + spiffe(s.callers, "friend") + `"`, `destination="` + spiffe(s.ns, "server") + `"`}
	allowed := append([]string{`direction="inbound"`, `port="8080"`, `code="200"`, `decision="allowed"`, `tls="TLSv1.3"`, "TrafficTarget " + s.ns + "/server-ok"}, both...)
	denied := append([]string{`direction="inbound"`, `port="8080"`, `code="403"`, `decision="denied"`, `reason="no grant matched"`, `policy="enforced`}, both...)
	called := append([]string{`direction="outbound"`, `service="` + s.ns + `/server:8080"`, `code="200"`, `tls="TLSv1.3"`}, both...)
	for name, side := range map[string]struct {
		pod    corev1.Pod
		path   string
		code   string
		labels []string
	}{
		"allowed, at the server": {s.server, "/ok", "200", allowed},
		"denied, at the server":  {s.server, "/admin", "403", denied},
		"at the caller":          {s.friend, "/ok", "200", called},
	} {
		before, err := counted(t.Context(), scraper, side.pod, side.labels)
		if err != nil || before == 0 {
			t.Errorf("%s: %d requests are counted with %v (%v)", name, before, side.labels, err)
		}
		load, err := cluster.Load(t.Context(), s.friend, s.url(side.path), "--requests=5")
		if err == nil {
			err = load.All(side.code)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		eventually(t, func(ctx context.Context) error {
			after, err := counted(ctx, scraper, side.pod, side.labels)
			if err == nil && after != before+5 {
				err = fmt.Errorf("%s: %d requests are counted after %d and five more", name, after, before)
			}
			return err
		})
	}
}

// counted returns the sum of a pod's counters of requests with all those labels, as
// a pod outside the mesh reads them.
func counted(ctx context.Context, from, of corev1.Pod, labels []string) (int, error) {
	result, err := cluster.Exec(ctx, from, from.Spec.Containers[0].Name,
		"curl", "--silent", "--show-error", "--fail", "http://"+of.Status.PodIP+":15010/metrics")
	if err != nil || result.Code != 0 {
		return 0, fmt.Errorf("read the metrics: %s (%w)", result.Stderr, err)
	}
	sum := 0
	for line := range strings.Lines(result.Stdout) {
		if !strings.HasPrefix(line, "outrigger_requests_total{") {
			continue
		}
		has := true
		for _, label := range labels {
			has = has && strings.Contains(line, label)
		}
		if !has {
			continue
		}
		n := 0
		if _, err := fmt.Sscan(line[strings.LastIndex(line, "}")+1:], &n); err != nil {
			return 0, fmt.Errorf("read %s: %w", line, err)
		}
		sum += n
	}
	return sum, nil
}

// TestAccessLogsSayWhatTheyAreToldTo sets what is logged on a namespace, a Service
// and a pod, while they run or at their start, and looks at both sides' logs.
func TestAccessLogsSayWhatTheyAreToldTo(t *testing.T) {
	t.Parallel()
	ns := namespace(t, "on", inMesh)
	quiet := caller("quiet")
	quiet.annotations = map[string]string{"outrigger.dev/access-log": "off"}
	pods := all(t, ns, httpEcho("server"), caller("client"), quiet)
	server, from, silent := pods[0], pods[1], pods[2]
	allow(t, ns, "server", ns+"/client", ns+"/quiet")
	consecutive(t, from, echoURL(ns, "server", "/before"), "200", 5)
	annotate(t, ns, "outrigger.dev/access-log", "on")
	eventually(t, func(ctx context.Context) error {
		if _, err := cluster.Call(ctx, from, echoURL(ns, "server", "/after")); err != nil {
			return err
		}
		for _, of := range []struct {
			pod  corev1.Pod
			side string
		}{{server, "inbound"}, {from, "outbound"}} {
			if n, err := linesOf(ctx, of.pod, of.side, "/after"); err != nil || n == 0 {
				return fmt.Errorf("%d lines of %s calls (%w)", n, of.side, err)
			}
		}
		return nil
	})
	for _, pod := range []corev1.Pod{server, from} {
		for _, side := range []string{"inbound", "outbound"} {
			if n, err := linesOf(t.Context(), pod, side, "/before"); err != nil || n > 0 {
				t.Errorf("%s: %d %s calls that went well are logged where nobody asked for it (%v)", pod.Name, n, side, err)
			}
		}
	}
	// The pod's own word counts before its namespace's: the server tells of the
	// calls, and the caller does not.
	consecutive(t, silent, echoURL(ns, "server", "/quietly"), "200", 5)
	logged(t, server, map[string]string{"direction": "inbound", "path": "/quietly", "caller": spiffe(ns, "quiet")})
	if n, err := linesOf(t.Context(), silent, "outbound", "/"); err != nil || n > 0 {
		t.Errorf("a pod that wants no log has %d lines (%v)", n, err)
	}
	// And a Service's before both: a last call that is logged shows that the ones
	// before it are not.
	patch := []byte(`{"metadata":{"annotations":{"outrigger.dev/access-log":"off"}}}`)
	service := &corev1.Service{}
	service.Namespace, service.Name = ns, "server"
	if err := cluster.Client.Patch(t.Context(), service, client.RawPatch(types.MergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
	round := 0
	eventually(t, func(ctx context.Context) error {
		round++
		path := fmt.Sprintf("/hidden-%d", round)
		if _, err := cluster.Call(ctx, from, echoURL(ns, "server", path)); err != nil {
			return err
		}
		// The caller's own line is there in any case.
		logged(t, from, map[string]string{"direction": "outbound", "path": path})
		if n, err := linesOf(ctx, server, "inbound", path); err != nil || n > 0 {
			return fmt.Errorf("the server logs %d calls that its Service wants none of (%w)", n, err)
		}
		return nil
	})
}

// linesOf counts the lines of a pod's access log about calls of a direction to paths
// that begin so.
func linesOf(ctx context.Context, pod corev1.Pod, direction, path string) (int, error) {
	text, err := cluster.Logs(ctx, pod, "outrigger-proxy")
	n := 0
	for line := range strings.Lines(text) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["direction"] == direction && strings.HasPrefix(fmt.Sprint(fields["path"]), path) {
			n++
		}
	}
	return n, err
}
