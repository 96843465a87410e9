//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestEgressIsAsItsNamespaceSays calls servers outside the mesh from namespaces
// that may and from one that may not.
func TestEgressIsAsItsNamespaceSays(t *testing.T) {
	t.Parallel()
	free, bound := namespace(t, "free", inMesh), namespace(t, "bound", inMesh)
	outside := namespace(t, "outside", outsideMesh)
	annotate(t, bound, "outrigger.dev/egress", "deny")
	caller("client").create(t, free)
	caller("client").create(t, bound)
	servers := all(t, outside, httpEcho("server"), banner("speaks-first"))
	freeClient, boundClient := ready(t, free, "app=client"), ready(t, bound, "app=client")

	byName, byAddress := echoURL(outside, "server", "/"), "http://"+servers[0].Status.PodIP+":8080/"
	bannerName, bannerAddress := service(outside, "speaks-first")+":9000", servers[1].Status.PodIP+":9000"
	for _, url := range []string{byName, byAddress} {
		answers(t, freeClient, url, 200)
		answer := answers(t, boundClient, url, 403)
		for _, want := range []string{"egress", bound + "/client"} {
			if !strings.Contains(answer.Refusal, want) {
				t.Errorf("%s: the refusal does not say %q: %s", url, want, answer.Refusal)
			}
		}
	}
	for _, address := range []string{bannerName, bannerAddress} {
		opens(t, freeClient, address, bannerText)
		closed(t, boundClient, address)
	}
	for _, from := range []corev1.Pod{freeClient, boundClient} {
		apiServerAnswers(t, from)
	}

	// The setting changes under pods that run.
	annotate(t, bound, "outrigger.dev/egress", "allow")
	for _, url := range []string{byName, byAddress} {
		answers(t, boundClient, url, 200)
	}
	annotate(t, bound, "outrigger.dev/egress", "deny")
	for _, url := range []string{byName, byAddress} {
		answers(t, boundClient, url, 403)
	}
}

// apiServerAnswers calls the API server as programs in pods do.
func apiServerAnswers(t *testing.T, from corev1.Pod) {
	t.Helper()
	const secrets = "/var/run/secrets/kubernetes.io/serviceaccount/"
	script := `curl --silent --show-error --cacert ` + secrets + `ca.crt --header "Authorization: Bearer $(cat ` + secrets + `token)" ` +
		`https://kubernetes.default.svc/version`
	eventually(t, func(ctx context.Context) error {
		result, err := cluster.Exec(ctx, from, from.Spec.Containers[0].Name, "/bin/sh", "-c", script)
		if err == nil && !strings.Contains(result.Stdout, "gitVersion") {
			err = fmt.Errorf("the API server answers %s/%s: %s%s", from.Namespace, from.Name, result.Stdout, result.Stderr)
		}
		return err
	})
}
