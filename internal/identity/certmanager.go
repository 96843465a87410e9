package identity

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	cmapi "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/outrigger-mesh/outrigger/internal/signing"
)

const (
	// RequestLabel marks the mesh's CertificateRequests; its value is the mesh's
	// name.
	RequestLabel = "outrigger.dev/certificate-request"
	// cleaning bounds the deletion of a request.
	cleaning = 10 * time.Second
	// declinedRetry is when those whose request was declined should come back: not
	// before somebody may have changed the policy or mended the issuer.
	declinedRetry = 30 * time.Second
)

// A CertManagerConfig says whom a CertManager asks. All fields but Changed and
// those of the roots are required.
type CertManagerConfig struct {
	Home Home
	// Client reads and writes CertificateRequests, which its scheme knows. It must
	// not be a cache.
	Client client.WithWatch
	// Authority is the name under which the roots are recorded.
	Authority string
	// Issuer is any that cert-manager knows: an Issuer in the system namespace, a
	// ClusterIssuer, or one of another group.
	Issuer cmmeta.IssuerReference
	// Roots, PEM, or RootsConfigMap, which holds them in ca.crt. Neither: the root
	// that the issuer shows when it is opened for the first time.
	Roots, RootsConfigMap string
	// Known says what the mesh's state has recorded of the authority.
	Known       Known
	TrustDomain string
	// Changed is called when the roots are other ones; nil for nobody.
	Changed func()
}

// A CertManager is an issuer that makes a CertificateRequest for each request, and
// waits for cert-manager's answer. Whether a request is approved is up to the
// cluster's policy. It is safe for concurrent use, and hears of answers while Run
// runs.
type CertManager struct {
	cfg       CertManagerConfig
	queue     *queue
	abandoned time.Duration // the age of requests that nobody can be waiting for

	mu      sync.Mutex
	roots   []*x509.Certificate
	waiters map[string]chan news // by name of the request
}

// news is the newest state of a request.
type news struct {
	request *cmapi.CertificateRequest
	deleted bool
}

// OpenCertManager returns the issuer once its roots are known: those that were
// given, or those that were recorded when it was opened for the first time, or, at
// that first time, the root that the issuer shows. That one is recorded, and no
// other is ever taken up by itself. One that people rotate to shows it anew.
func OpenCertManager(ctx context.Context, cfg CertManagerConfig) (*CertManager, error) {
	c := &CertManager{
		cfg: cfg, queue: newQueue(issuerSlots, issuerQueue), waiters: map[string]chan news{},
		abandoned: 5 * time.Minute,
	}
	var err error
	switch {
	case cfg.Roots != "" || cfg.RootsConfigMap != "":
		c.roots, err = c.givenRoots(ctx)
		if err == nil && len(cfg.Known.Roots) > 0 && !overlap(c.roots, cfg.Known.Roots) {
			err = fmt.Errorf("%w: the roots of authority %s are none of those that running pods know it by; have them hold both until every pod's certificate leads to the new ones", ErrNoCA, cfg.Authority)
		}
	case len(cfg.Known.Roots) > 0:
		c.roots = cfg.Known.Roots
	case cfg.Known.Fresh: // an authority of that name may have been another one once
		c.roots, err = c.firstRoots(ctx)
	default:
		c.roots, err = cfg.Home.pinned(ctx, cfg.Authority, c.firstRoots)
	}
	return c, err
}

// Roots returns the roots as they are now.
func (c *CertManager) Roots() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.roots)
}

// Issue has cert-manager answer a request, and removes what it has made for it.
// The error is a *signing.Refusal where cert-manager has said no.
func (c *CertManager) Issue(ctx context.Context, request *x509.CertificateRequest, t Template) ([]*x509.Certificate, error) {
	answer, err := c.ask(ctx, request, t)
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates(answer.Status.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of the %s: %w", c.issuer(), err)
	}
	return chain, nil
}

// ask makes a CertificateRequest, waits until it is decided, and deletes it.
func (c *CertManager) ask(ctx context.Context, request *x509.CertificateRequest, t Template) (*cmapi.CertificateRequest, error) {
	leave, err := c.queue.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	object := c.request(request, t)
	heard := c.listen(object.Name)
	defer c.forget(object.Name)
	err = c.cfg.Client.Create(ctx, object)
	if meta.IsNoMatchError(err) {
		return nil, fmt.Errorf("create a CertificateRequest in %s (is cert-manager installed?): %w", object.Namespace, err)
	}
	if err != nil {
		return nil, fmt.Errorf("create a CertificateRequest in %s: %w", object.Namespace, err)
	}
	defer c.remove(ctx, object.Name)
	last := "nobody has looked at it"
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the %s: %s: %w", c.issuer(), last, context.Cause(ctx))
		case now := <-heard:
			if now.deleted {
				return nil, fmt.Errorf("wait for the %s: somebody deleted the CertificateRequest", c.issuer())
			}
			done, err := c.judge(now.request, &last)
			if err != nil {
				return nil, err
			}
			if done {
				return now.request, nil
			}
		}
	}
}

// judge reports whether a request has its certificate. The error is a
// *signing.Refusal when it will never have one. Otherwise last becomes what it
// waits for.
func (c *CertManager) judge(request *cmapi.CertificateRequest, last *string) (bool, error) {
	approved, ready := false, false
	for _, condition := range request.Status.Conditions {
		holds := condition.Status == cmmeta.ConditionTrue
		why := condition.Reason + ": " + condition.Message
		switch condition.Type {
		case cmapi.CertificateRequestConditionDenied:
			if holds {
				return false, declined(codes.PermissionDenied, ReasonDenied, "the cluster's policy denies a certificate of the %s: %s", c.issuer(), why)
			}
		case cmapi.CertificateRequestConditionInvalidRequest:
			if holds {
				return false, declined(codes.Unavailable, ReasonIssuer, "the %s calls the request invalid: %s", c.issuer(), why)
			}
		case cmapi.CertificateRequestConditionApproved:
			approved = holds
		case cmapi.CertificateRequestConditionReady:
			if condition.Reason == cmapi.CertificateRequestReasonFailed {
				return false, declined(codes.Unavailable, ReasonIssuer, "the %s failed: %s", c.issuer(), why)
			}
			*last, ready = why, holds
		}
	}
	switch {
	case ready && len(request.Status.Certificate) > 0:
		return true, nil
	case !approved:
		*last = "the request is neither approved nor denied"
	case len(request.Status.Conditions) == 1:
		*last = "the request is approved, but nobody has signed it"
	}
	return false, nil
}

func declined(code codes.Code, reason, format string, args ...any) *signing.Refusal {
	refusal := refuse(code, reason, format, args...)
	refusal.RetryAfter = declinedRetry
	return refusal
}

// request is what cert-manager is asked for. The name is ours, so that whoever
// waits for it is known before it exists.
func (c *CertManager) request(request *x509.CertificateRequest, t Template) *cmapi.CertificateRequest {
	return &cmapi.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.cfg.Home.Namespace, Name: "outrigger-" + strings.ToLower(rand.Text()),
			Labels: map[string]string{RequestLabel: c.cfg.Home.Mesh},
		},
		Spec: cmapi.CertificateRequestSpec{
			Request:   pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: request.Raw}),
			IssuerRef: c.cfg.Issuer,
			Duration:  &metav1.Duration{Duration: t.Lifetime},
			Usages:    []cmapi.KeyUsage{cmapi.UsageDigitalSignature, cmapi.UsageClientAuth, cmapi.UsageServerAuth},
		},
	}
}

// issuer names whom is asked, for errors.
func (c *CertManager) issuer() string { return c.cfg.Issuer.Kind + " " + c.cfg.Issuer.Name }

func (c *CertManager) listen(name string) <-chan news {
	heard := make(chan news, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters[name] = heard
	return heard
}

func (c *CertManager) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, name)
}

// tell passes a request on to whoever waits for it. Only the newest state counts.
func (c *CertManager) tell(object any, deleted bool) {
	request, ok := object.(*cmapi.CertificateRequest)
	if !ok {
		return // one whose end was missed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	heard, ok := c.waiters[request.Name]
	if !ok {
		return
	}
	select {
	case <-heard:
	default:
	}
	heard <- news{request: request, deleted: deleted}
}

// remove deletes a request, also when the caller has gone away. What stays all
// the same is found by Clean.
func (c *CertManager) remove(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleaning)
	defer cancel()
	request := &cmapi.CertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: c.cfg.Home.Namespace, Name: name}}
	_ = c.cfg.Client.Delete(ctx, request)
}

// informer is the one watch of all requests of this mesh.
func (c *CertManager) informer() (toolscache.SharedIndexInformer, error) {
	mine := []client.ListOption{client.InNamespace(c.cfg.Home.Namespace), client.MatchingLabels{RequestLabel: c.cfg.Home.Mesh}}
	options := func(given metav1.ListOptions) []client.ListOption {
		return append([]client.ListOption{&client.ListOptions{Raw: &given}}, mine...)
	}
	informer := toolscache.NewSharedIndexInformer(&toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, given metav1.ListOptions) (runtime.Object, error) {
			list := &cmapi.CertificateRequestList{}
			return list, c.cfg.Client.List(ctx, list, options(given)...)
		},
		WatchFuncWithContext: func(ctx context.Context, given metav1.ListOptions) (watch.Interface, error) {
			return c.cfg.Client.Watch(ctx, &cmapi.CertificateRequestList{}, options(given)...)
		},
	}, &cmapi.CertificateRequest{}, 0, nil)
	_, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { c.tell(object, false) },
		UpdateFunc: func(_, object any) { c.tell(object, false) },
		DeleteFunc: func(object any) { c.tell(object, true) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch CertificateRequests in %s: %w", c.cfg.Home.Namespace, err)
	}
	return informer, nil
}

// Run hears of answers, follows the roots where a ConfigMap holds them, and
// removes abandoned requests, until ctx ends.
func (c *CertManager) Run(ctx context.Context, log logr.Logger) error {
	informer, err := c.informer()
	if err != nil {
		return err
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		informer.RunWithContext(ctx)
	}()
	defer func() { <-watching }()
	tick := time.NewTicker(min(reload, c.abandoned))
	defer tick.Stop()
	told := ""
	for {
		n, err := c.Clean(ctx, time.Now().Add(-c.abandoned))
		if n > 0 {
			log.Info("abandoned CertificateRequests removed", "count", n)
		}
		if err == nil {
			err = c.reload(ctx, log)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			told = ""
		case err.Error() != told: // once, not every minute
			told = err.Error()
			log.Error(err, "cert-manager's objects not kept")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Clean removes requests of this mesh that were made before a moment, by whatever
// replica, and returns how many.
func (c *CertManager) Clean(ctx context.Context, before time.Time) (int, error) {
	var list cmapi.CertificateRequestList
	if err := c.cfg.Client.List(ctx, &list, client.InNamespace(c.cfg.Home.Namespace), client.MatchingLabels{RequestLabel: c.cfg.Home.Mesh}); err != nil {
		return 0, fmt.Errorf("list CertificateRequests in %s: %w", c.cfg.Home.Namespace, err)
	}
	n := 0
	for i := range list.Items {
		if !list.Items[i].CreationTimestamp.Time.Before(before) {
			continue
		}
		// Another replica cleans too.
		if err := c.cfg.Client.Delete(ctx, &list.Items[i]); client.IgnoreNotFound(err) != nil {
			return n, fmt.Errorf("delete an abandoned CertificateRequest: %w", err)
		}
		n++
	}
	return n, nil
}
