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
