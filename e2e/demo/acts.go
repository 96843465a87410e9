package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/e2e/cluster/local"
	"github.com/outrigger-mesh/outrigger/e2e/demo/manifests"
	"github.com/outrigger-mesh/outrigger/e2e/harness"
)

// What the buyer asks for. The route group lets requests through that say they
// are the buyer's.
const (
	storeURL = "http://bookstore.bookstore.svc.cluster.local:14001/books-bought"
	asBuyer  = "client-app: bookbuyer"
)

var namespaces = []string{"bookbuyer", "bookthief", "bookstore", "bookwarehouse"}

// demo is the acts, each of which returns what it saw.
type demo struct {
	*harness.Cluster
	buyer, thief corev1.Pod
}

// clean takes out what an earlier run left, so that each run shows the same.
func (d *demo) clean(ctx context.Context) (string, error) {
	if err := d.DeleteNamespaces(ctx, namespaces...); err != nil {
		return "", err
	}
	if _, err := d.CLI(ctx, "uninstall"); err != nil {
		return "", err
	}
	return "no mesh, no bookstore", d.DeleteNamespaces(ctx, harness.SystemNamespace)
}

func (d *demo) install(ctx context.Context) (string, error) {
	_, err := d.Install(ctx, "trafficPolicy=enforced")
	return "outrigger install, two replicas ready", err
}

func (d *demo) deploy(ctx context.Context) (string, error) {
	for _, text := range []string{manifests.Bookstore, manifests.Policy} {
		if err := d.Apply(ctx, text); err != nil {
			return "", err
		}
	}
	count := 0
	for _, ns := range namespaces {
		pods, err := d.Ready(ctx, ns, "", 1)
		if err != nil {
			return "", err
		}
		for _, pod := range pods {
			if len(pod.Spec.InitContainers) != 2 || pod.Spec.InitContainers[1].Name != "outrigger-proxy" {
				return "", fmt.Errorf("pod %s/%s was not injected", ns, pod.Name)
			}
			count++
		}
		switch ns {
		case "bookbuyer":
			d.buyer = pods[0]
		case "bookthief":
			d.thief = pods[0]
		}
	}
	return fmt.Sprintf("%d pods injected and ready", count), nil
}

func (d *demo) mutualTLS(ctx context.Context) (string, error) {
	var load harness.Load
	// The first calls may come before the proxies heard of the policy.
	err := harness.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		var err error
		if load, err = d.Load(ctx, d.buyer, storeURL, "--requests", "100", "--header", asBuyer); err != nil {
			return err
		}
		return load.All("200")
	})
	if err != nil {
		return "", err
	}
	stats, err := d.Exec(ctx, d.buyer, "outrigger-proxy", "/outrigger-agent", "admin", "GET", "/stats?filter=bookstore.*ssl")
	if err != nil {
		return "", err
	}
	handshakes := ""
	for line := range strings.Lines(stats.Stdout) {
		if strings.Contains(line, "ssl.handshake") && !strings.HasSuffix(strings.TrimSpace(line), ": 0") {
			handshakes = strings.TrimSpace(line)
		}
	}
	if handshakes == "" {
		return "", fmt.Errorf("the buyer's Envoy counts no TLS handshake with the bookstore:\n%s%s", stats.Stdout, stats.Stderr)
	}
	return fmt.Sprintf("100 of 100 answered 200, p50 %.1f ms; %s", load.Latency["p50"], handshakes), nil
}

// wire looks at what passes between the pods. The application's own words must
// not be among it, and TLS records must.
func (d *demo) wire(ctx context.Context) (string, error) {
	if !d.Ours {
		return "not looked at: the nodes are not this machine", nil
	}
	const requests = 50
	filter := "tcp port 14001 and host " + d.buyer.Status.PodIP
	packets, err := d.Capture(ctx, filter, func() error {
		load, err := d.Load(ctx, d.buyer, storeURL, "--requests", fmt.Sprint(requests), "--header", asBuyer, "--keep-alive=false")
		if err != nil {
			return err
		}
		return load.All("200")
	})
	if err != nil {
		return "", err
	}
	for _, readable := range []string{"HTTP/1.1", "books-bought", "client-app", "bookbuyer", "Identity"} {
		if bytes.Contains(packets, []byte(readable)) {
			return "", fmt.Errorf("%q can be read on the wire", readable)
		}
	}
	records := bytes.Count(packets, []byte{0x17, 0x03, 0x03})
	if records < requests {
		return "", fmt.Errorf("%d TLS records in %d bytes for %d requests: the capture missed the traffic", records, len(packets), requests)
	}
	return fmt.Sprintf("%d kB captured, %d TLS records, no plain text", len(packets)/1024, records), nil
}

func (d *demo) denied(ctx context.Context) (string, error) {
	load, err := d.Load(ctx, d.thief, storeURL, "--requests", "100", "--header", "client-app: bookthief")
	if err != nil {
		return "", err
	}
	if err := load.All("403"); err != nil {
		return "", err
	}
	body, err := d.Exec(ctx, d.thief, d.thief.Spec.Containers[0].Name, "/bookstore", "job", "--url", storeURL)
	if err != nil {
		return "", err
	}
	return "100 of 100 answered 403: " + strings.TrimSpace(body.Stdout+body.Stderr), nil
}

// splitShare measures the share of v1 in a thousand requests.
func (d *demo) splitShare(ctx context.Context, low, high int) (string, error) {
	var load harness.Load
	err := harness.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		var err error
		if load, err = d.Load(ctx, d.buyer, storeURL, "--requests", "1000", "--header", asBuyer); err != nil {
			return err
		}
		if err := load.All("200"); err != nil {
			return err
		}
		if v1 := load.Identities["bookstore-v1"]; v1 < low || v1 > high {
			return fmt.Errorf("v1 answered %d of 1000; %d to %d wanted", v1, low, high)
		}
		return nil
	})
	return fmt.Sprintf("v1 %d, v2 %d of 1000", load.Identities["bookstore-v1"], load.Identities["bookstore-v2"]), err
}

// Five standard deviations around the mean of a thousand throws.
func (d *demo) splitEven(ctx context.Context) (string, error) { return d.splitShare(ctx, 421, 579) }

func (d *demo) splitShifted(ctx context.Context) (string, error) {
	if err := d.Apply(ctx, manifests.SplitShifted); err != nil {
		return "", err
	}
	return d.splitShare(ctx, 53, 147)
}

func (d *demo) revoke(ctx context.Context) (string, error) {
	holding, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	lines := d.Hold(holding, d.buyer, storeURL, "--header", asBuyer)
	if _, _, err := harness.Until(holding, lines, 200); err != nil {
		return "", err
	}
	deleted := time.Now()
	if err := d.Delete(ctx, manifests.Targets); err != nil {
		return "", err
	}
	denied, served, err := harness.Until(holding, lines, 403)
	if err != nil {
		return "", err
	}
	if took := denied.Time.Sub(deleted); took > time.Second {
		return "", fmt.Errorf("it took %s", took)
	}
	if err := d.Apply(ctx, manifests.Targets); err != nil {
		return "", err
	}
	if _, _, err := harness.Until(holding, lines, 200); err != nil {
		return "", fmt.Errorf("after the policy was put back: %w", err)
	}
	over := "over the same connection"
	if !denied.Reused {
		over = "the open connection was ended, the next one denied"
	}
	return fmt.Sprintf("403 after %d ms and %d more answers (%s); 200 again when put back",
		denied.Time.Sub(deleted).Milliseconds(), served, over), nil
}

func (d *demo) withoutControlPlane(ctx context.Context) (string, error) {
	if err := d.scale(ctx, 0); err != nil {
		return "", err
	}
	load, err := d.Load(ctx, d.buyer, storeURL, "--requests", "1000", "--rate", "500", "--header", asBuyer)
	if err != nil {
		return "", err
	}
	if err := load.All("200"); err != nil {
		return "", err
	}
	return "1000 of 1000 answered 200", d.scale(ctx, 2)
}

// scale sets the control plane's replicas and waits until it is so.
func (d *demo) scale(ctx context.Context, replicas int32) error {
	key := client.ObjectKey{Namespace: harness.SystemNamespace, Name: "outriggerd"}
	deployment := &appsv1.Deployment{}
	deployment.Namespace, deployment.Name = key.Namespace, key.Name
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if err := d.Client.Patch(ctx, deployment, client.RawPatch("application/merge-patch+json", patch)); err != nil {
		return fmt.Errorf("scale the control plane to %d: %w", replicas, err)
	}
	return harness.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		if err := d.Client.Get(ctx, key, deployment); err != nil {
			return err
		}
		var pods corev1.PodList
		if err := d.Client.List(ctx, &pods, client.InNamespace(key.Namespace), client.MatchingLabels{"app.kubernetes.io/component": "outriggerd"}); err != nil {
			return err
		}
		if len(pods.Items) != int(replicas) || deployment.Status.ReadyReplicas != replicas {
			return fmt.Errorf("%d pods of the control plane, %d ready; %d wanted", len(pods.Items), deployment.Status.ReadyReplicas, replicas)
		}
		return nil
	})
}

func (d *demo) job(ctx context.Context) (string, error) {
	if err := d.Apply(ctx, manifests.Job); err != nil {
		return "", err
	}
	started := time.Now()
	objects, err := d.Objects(manifests.Job)
	if err != nil {
		return "", err
	}
	err = harness.Eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		job := &batchv1.Job{}
		if err := d.Client.Get(ctx, client.ObjectKeyFromObject(objects[len(objects)-1]), job); err != nil {
			return err
		}
		if job.Status.Succeeded != 1 {
			return fmt.Errorf("job %s: %d succeeded, %d failed", job.Name, job.Status.Succeeded, job.Status.Failed)
		}
		return nil
	})
	return fmt.Sprintf("in %.0f s", time.Since(started).Seconds()), err
}

// path says where kubectl is: a machine without one has that of our cluster.
func (d *demo) path(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("kubectl"); err == nil || !d.Ours {
		return "", nil
	}
	status, err := local.Status(ctx, local.Config{})
	if err != nil {
		return "", err
	}
	return "  export PATH=$PATH:" + filepath.Dir(status.Kubectl) + "\n", nil
}

// farewell says how to end it.
func (d *demo) farewell() string {
	if d.Ours {
		return "make demo-down stops the cluster.\n"
	}
	return "outrigger uninstall takes the mesh out again.\n"
}
