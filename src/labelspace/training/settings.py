"""Settings of a run, by the component that uses them; `config` makes them of flat names and of files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..base.checks import SEEDS

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Places = Count | Literal["positives"]


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How texts become vectors.

    Args:
        encoder: ``static``, ``minilm``, a model folder (of labelspace too: a warm start), or a name of the hub.
        base: the transformer from which ``static`` is made.
        vocabulary: tokens of ``static``: ``pieces`` of the base; ``words`` adds the corpus's whole words, ``phrases``
            also label texts and common pairs of words.
        max_words: most words added to ``static``, and most phrases.
        frequency_weight: a in the token weight a / (a + frequency) of ``static``; 0 for equal weights.
        pooling: of a transformer; its own when not given.
        projection: dimensions of a linear layer added to a transformer; none when not given.
        normalize: make unit vectors; raw ones want a temperature near 1.
        dropout: of a transformer in training; ``own`` keeps the pretrained model's, most often 0.1, as the papers do.
            In runs of some hundred steps 0 is as good.
        attention: of a transformer; ``packed`` computes no padding. ``auto`` is packed on a CPU where the architecture
            allows it, else eager for training on short texts on a CPU, else sdpa.
        clean: what a transformer keeps of a text: ``letters``, a to z, digits and the full stop in lower case, or
            ``clean_str``, with some signs, apart by blanks (Kim, 2014). All of it when not given.
        max_tokens: texts are cut here; when not given, 256 for ``static`` and 128, or fewer where it must, for a
            transformer.
        long_documents: what is kept of a longer text: ``head`` the first tokens; ``head+tail`` the first and the last,
            three to one; ``chunks`` up to ``max_chunks`` times ``max_tokens``, encoded apart, their vectors averaged.
        max_chunks: most chunks of a text, with ``chunks``.
        chunk_size: texts, or chunks, of full length encoded at a time in training; of shorter ones as many more.
        activations_gb: memory for activations of a transformer; what does not fit is computed again, in a third more
            time.
        device: ``auto`` is cuda or mps where there is one, else cpu.
        precision: of training; ``auto`` is bf16 where the device multiplies faster in it.
    """

    encoder: str = "static"
    base: str = "minilm"
    vocabulary: Literal["phrases", "words", "pieces"] = "phrases"
    max_words: Annotated[int, Field(ge=0)] = 100_000
    frequency_weight: NotNegative = 1e-4
    pooling: Literal["mean", "cls"] | None = None
    projection: Count | None = None
    normalize: bool = True
    dropout: Probability | Literal["own"] = 0.0
    attention: Literal["auto", "packed", "eager", "sdpa"] = "auto"
    clean: Literal["letters", "clean_str"] | None = None
    max_tokens: Annotated[int, Field(ge=4)] | None = None
    long_documents: Literal["head", "head+tail", "chunks"] = "head"
    max_chunks: Count = 8
    chunk_size: Count = 8
    activations_gb: NotNegative = 4.0
    device: str = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast a model is fitted.

    Args:
        epochs: passes over the training documents.
        batch_size: documents in a step.
        lr: highest learning rate; when not given, 3e-3 for ``static``, 1e-3 for it in RAE-XMC, and for a transformer
            4e-4 times 384 / width, 4e-4 at most.
        token_lr_factor: rate of a transformer's token table, as a multiple of ``lr``; rare words are met seldom.
        token_decay: the token table of a transformer decays as other matrices do.
        weight_decay: never on biases and norms; when not given, 0 for ``static`` and 0.01 for a transformer, 0.05 in
            UniDEC.
        warmup: share of the run in which the rate rises; afterwards it falls to 0.
        warmup_steps: steps in which the rate rises, instead of ``warmup``; in a shorter run it only rises.
        schedule: how the rate falls: ``linear``, or ``cosine``, along half a wave.
        max_grad_norm: gradients are scaled down to this norm; 0 for no limit.
        max_minutes: end within this time, reading and saving included; the rate follows the clock.
        evaluations: how often a run looks at the validation documents, the end included.
        valid_documents: most validation documents that are looked at; a memory is tuned on 3,000 of them at most.
        checkpoint_minutes: minutes between two states of the run, from which --resume goes on; 0 for none.
        patience: stop after this many evaluations without a better nDCG@5; 0 for never.
        seed: of every random choice.
        track: send the records of ``log.jsonl`` to ``trackio`` or ``wandb`` as well.
        track_project: the project there.
    """

    epochs: Count = 5
    batch_size: Count = 512
    lr: Positive | None = None
    token_lr_factor: Positive = 5.0
    token_decay: bool = False
    weight_decay: NotNegative | None = None
    warmup: Probability = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    schedule: Literal["linear", "cosine"] = "linear"
    max_grad_norm: NotNegative = 1.0
    max_minutes: Positive | None = None
    evaluations: Annotated[int, Field(ge=0)] = 8
    valid_documents: Count = 5000
    checkpoint_minutes: NotNegative = 5.0
    patience: Annotated[int, Field(ge=0)] = 4
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    track: Literal["trackio", "wandb"] | None = None
    track_project: str = "labelspace"


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """How hard negatives are found.

    Args:
        num_negatives: hard negatives drawn for a document in a step.
        mine_from: share of the run after which the first shortlists are made.
        mine_every: share of the run after which they are made anew.
        range_min: best labels of a shortlist that are passed over.
        range_max: length of a shortlist.
        max_score: highest similarity of a hard negative; no limit when not given.
        absolute_margin: a hard negative is less similar than the document's best label by this; no limit if not given.
        relative_margin: the same as a share of the similarity of that label; no limit when not given.
    """

    num_negatives: Count = 2
    mine_from: Probability = 0.1
    mine_every: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.15
    range_min: Annotated[int, Field(ge=0)] = 0
    range_max: Count = 100
    max_score: Finite | None = None
    absolute_margin: NotNegative | None = None
    relative_margin: NotNegative | None = None

    def __post_init__(self) -> None:
        if self.range_min >= self.range_max:
            raise ValueError(f"range_min: {self.range_min} passes over the whole shortlist of {self.range_max}")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What a step learns from.

    Args:
        label_documents: in training the text of every label is a document too, with that label alone.
        uniform_negatives: labels drawn uniformly that a step scores beside those of its pool.
    """

    label_documents: bool = False
    uniform_negatives: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What a memory of training documents is like.

    Args:
        objective: metrics apart by commas, by whose mean the memory is tuned: P, nDCG or PSP at 1, 3 or 5.
        key_precision: of document keys and of encoding them; ``bf16`` takes half the space, and ``auto`` is that on a
            CPU that is faster in it, else ``float32``.
        linear: learn a linear classifier on words, which reranks what the keys find; it is kept where validation
            documents are ranked better.
        tune_documents: where no document is held out for validation, training documents on which the memory is tuned,
            half of them at most; they do not vote meanwhile. The encoder has learnt from them. None when not given.
    """

    objective: str = "P@1,P@3,P@5"
    key_precision: Literal["auto", "float32", "bf16"] = "auto"
    linear: bool = False
    tune_documents: Count | None = None


@dataclass(frozen=True, kw_only=True)
class OptionalMemory(MemorySettings):
    """A memory of training documents, if one is wanted.

    Args:
        memory: after training, training documents become keys that vote, as in RAE-XMC, and how they vote is tuned.
    """

    memory: bool = False

    def __post_init__(self) -> None:
        if self.linear and not self.memory:
            raise ValueError("linear: it reranks what a memory of documents finds; give memory too, or leave it out")
        if self.tune_documents and not self.memory:
            raise ValueError("tune_documents: a memory of documents is tuned on them; give memory too, or leave it out")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every recipe has, by component; no two components have a setting of the same name."""

    encoding: EncoderSettings = EncoderSettings()
    fit: FitSettings = FitSettings()
    mining: MiningSettings = MiningSettings()
    batches: BatchSettings = BatchSettings()
    voting: MemorySettings = MemorySettings()


@dataclass(frozen=True, kw_only=True)
class DexmlLoss:
    """The loss of DEXML.

    Args:
        loss: of a document over the labels of the pool.
        k: places of ``soft_top_k``, or ``positives``: as many for a row as it has positives.
        alpha: steepness of ``soft_top_k``.
        temperature: divides the similarities; 0.05 suits unit vectors, 1 raw ones.
    """

    loss: Literal["decoupled_softmax", "softmax", "soft_top_k", "bce"] = "decoupled_softmax"
    k: Places = 5
    alpha: Positive = 2.0
    temperature: Positive = 0.05


@dataclass(frozen=True, kw_only=True)
class DexmlBatches(BatchSettings):
    """What a step of DEXML learns from.

    Args:
        negatives: ``all`` scores every label in every step, ``in-batch`` the labels of the batch's documents, ``mined``
            also labels that the model itself ranks high for them.
        positives: ``all``, or ``sample`` to draw one of a document's labels a step (k for ``soft_top_k``).
        pool_positives: labels drawn for a document into the pool; when not given, all, or 1 with ``mined``. With the
            negatives ``all`` it does nothing.
        weighted: weigh each positive by its relevance (``target_rel``), by which ``sample`` draws in any case.
    """

    negatives: Literal["all", "in-batch", "mined"] = "all"
    positives: Literal["all", "sample"] = "all"
    pool_positives: Count | None = None
    weighted: bool = False


@dataclass(frozen=True, kw_only=True)
class DexmlSettings(RunSettings):
    """DEXML: one encoder for documents and labels, trained against the labels of a pool."""

    losses: DexmlLoss = DexmlLoss()
    batches: DexmlBatches = DexmlBatches()
    voting: OptionalMemory = OptionalMemory()

    def __post_init__(self) -> None:
        if self.batches.positives == "sample" and self.losses.loss == "bce":
            raise ValueError("positives: 'sample' does not go with the loss 'bce', which needs every positive")
        if self.batches.positives == "sample" and self.losses.k == "positives":
            raise ValueError("positives: 'sample' draws k of them; give a number for k, or take all")
        if self.batches.uniform_negatives and self.batches.negatives == "all":
            raise ValueError("uniform_negatives: the negatives 'all' are every label; leave it out, or choose others")


Loss = Literal["decoupled_softmax", "softmax", "supcon", "balanced", "soft_top_k", "bce"]


@dataclass(frozen=True, kw_only=True)
class UnidecLoss:
    """The loss of UniDEC: of its dual encoder, and of both heads together.

    Args:
        encoder_loss: loss of the dual encoder.
        directions: which heads also learn from labels to documents, with half the weight of their loss.
        encoder_weight: share of the dual encoder in the loss, lambda in the paper; the classifier has the rest.
        k: places of ``soft_top_k``, or ``positives``: as many for a row as it has positives.
        alpha: steepness of ``soft_top_k``.
        temperature: divides the scores of both heads; the paper multiplies by 18.
    """

    encoder_loss: Loss = "decoupled_softmax"
    directions: Literal["none", "encoder", "classifier", "both"] = "encoder"
    encoder_weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.5
    k: Places = 5
    alpha: Positive = 2.0
    temperature: Positive = 0.0556


@dataclass(frozen=True, kw_only=True)
class UnidecMining(MiningSettings):
    """How UniDEC finds hard negatives."""

    num_negatives: Count = 6
    range_max: Count = 30
    mine_every: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.2


@dataclass(frozen=True, kw_only=True)
class UnidecBatches(BatchSettings):
    """What a step of UniDEC learns from.

    Args:
        num_positives: labels of a document drawn into the pool; 0 for all.
        cap: most labels in a pool; 8 times the batch size when not given.
        gap: no more is added to a pool once so few places are left.
        pool: ``all`` scores every label in every step, ``some`` a pool of positives and hard negatives; ``auto`` is
            ``all`` for up to 65,536 labels with ``static`` or an encoder weight of 0, else ``some``.
        clusters: make each batch of documents that are alike, once hard negatives are made, as the paper does.
    """

    num_positives: Annotated[int, Field(ge=0)] = 3
    cap: Count | None = None
    gap: Annotated[int, Field(ge=0)] = 10
    pool: Literal["auto", "some", "all"] = "auto"
    clusters: bool = False
    label_documents: bool = True


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The layers behind the encoder of UniDEC, and the shares of its two rankings.

    Args:
        encoder_dim: dimensions of the dual encoder's vectors; 0 takes those of the encoder itself. When not given, 0
            for ``static`` and 384 for a transformer.
        identity: heads begin as the identity, instead of at random.
        head_dropout: of the heads' vectors of texts; 0 for ``static`` and 0.1 for a transformer when not given.
        head_lr: learning rate of the heads; twice that of the encoder when not given.
        search_weight: share of the dual encoder in the score; chosen on validation documents when not given.
    """

    encoder_dim: Annotated[int, Field(ge=0)] | None = None
    identity: bool = True
    head_dropout: Probability | None = None
    head_lr: Positive | None = None
    search_weight: Annotated[float, Field(ge=0.05, le=0.95, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The classifier of UniDEC: a table with a row for each label.

    Args:
        classifier_loss: loss of the classifier.
        classifier_labels: ``pool`` trains the rows of the pool; ``all`` every row in every step, by one-vs-all BCE and
            stochastic gradient descent (Renee, ELMO).
        classifier_dim: dimensions of the label table; as for encoder_dim.
        classifier_norm: where vectors and rows of the classifier have unit length: in ``search``, ``both`` in search
            and training, or ``never``. With ``tuned``, in search, but rows keep as much of their length as ranks
            validation documents best. When not given, ``never`` for one-vs-all or ``bce``, else ``search``.
        table_init: ``labels`` begins with the vectors of the label texts, ``random`` at random; random for one-vs-all
            and labels otherwise when not given.
        table_dropout: of the rows of the label table; as for head_dropout.
        table_lr: learning rate of the label table; when not given, 1e-3 for one-vs-all, else 0.01 with ``adagrad``,
            else 3e-3 for ``static`` and 1e-3 for a transformer.
        table_momentum: of the gradient of one-vs-all; it takes four bytes a weight.
        table_optimizer: ``adamw``, or ``adagrad``, which needs next to no memory beside the table.
        table_dtype: ``float32``, or ``bf16`` rounded stochastically.
    """

    classifier_loss: Loss = "decoupled_softmax"
    classifier_labels: Literal["pool", "all"] = "pool"
    classifier_dim: Annotated[int, Field(ge=0)] | None = None
    classifier_norm: Literal["search", "both", "never", "tuned"] | None = None
    table_init: Literal["labels", "random"] | None = None
    table_dropout: Probability | None = None
    table_lr: Positive | None = None
    table_momentum: Probability = 0.0
    table_optimizer: Literal["adamw", "adagrad"] = "adamw"
    table_dtype: Literal["float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        if self.classifier_labels == "pool":
            if self.table_momentum:
                raise ValueError(
                    "table_momentum: it is for classifier_labels 'all', which descends along all gradients"
                )
            return
        if self.classifier_norm == "both":
            raise ValueError("classifier_norm: 'both' does not go with classifier_labels 'all'; take search or never")
        unused = [("table_dropout", self.table_dropout),
                  ("table_optimizer", self.table_optimizer != "adamw"),
                  ("classifier_loss", self.classifier_loss not in ("decoupled_softmax", "bce"))]  # fmt: skip
        for name, given in unused:
            if given:
                raise ValueError(
                    f"{name}: it does nothing with classifier_labels 'all', which is one-vs-all BCE with its own "
                    "descent; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class CompanionMemory(OptionalMemory):
    """A memory of training documents, and a second encoder that answers beside the first.

    Args:
        companion: a second encoder joined with a transformer that has a memory: ``static``, trained by RAE-XMC in a few
            passes, or ``static-unidec``, with a classifier of its own, which takes longer and adds more.
        documents_by: by whose vectors the training documents vote: the ``encoder``'s, which has to encode all of them
            once more, or the ``companion``'s, which takes seconds.
    """

    companion: Literal["none", "static", "static-unidec"] = "none"
    documents_by: Literal["encoder", "companion"] = "encoder"

    def __post_init__(self) -> None:
        if self.companion not in ("none", None) and not self.memory:
            raise ValueError(
                f"companion: {self.companion!r} shares the memory of the model; give memory too, or leave it out"
            )
        if self.documents_by == "companion" and self.companion == "none":
            raise ValueError("documents_by: there is no companion; give companion 'static' too, or leave it out")
        if self.documents_by == "companion" and not self.memory:
            raise ValueError("documents_by: documents vote in a memory alone; give memory too, or leave it out")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class UnidecSettings(RunSettings):
    """UniDEC: a dual encoder and a classifier behind one encoder, trained together on a picked pool of labels."""

    losses: UnidecLoss = UnidecLoss()
    mining: UnidecMining = UnidecMining()
    batches: UnidecBatches = UnidecBatches()
    heads: HeadSettings = HeadSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    voting: CompanionMemory = CompanionMemory()


@dataclass(frozen=True, kw_only=True)
class RaexmcFit(FitSettings):
    """How long and how fast RAE-XMC is fitted.

    Args:
        epochs: passes over the training documents; 0 for no training, the memory and its tuning only.
    """

    epochs: Annotated[int, Field(ge=0)] = 5


@dataclass(frozen=True, kw_only=True)
class RaexmcLoss:
    """The loss of RAE-XMC.

    Args:
        temperature: divides the similarities in training; that of the memory is tuned.
    """

    temperature: Positive = 0.04


@dataclass(frozen=True, kw_only=True)
class RaexmcMining(MiningSettings):
    """How RAE-XMC finds hard negatives.

    Args:
        num_negatives: hard negatives drawn for a document in a step; they cost more than they bring.
    """

    num_negatives: Annotated[int, Field(ge=0)] = 0
    range_max: Count = 50


@dataclass(frozen=True, kw_only=True)
class RaexmcBatches(BatchSettings):
    """What a step of RAE-XMC learns from.

    Args:
        positives: labels of a document that are drawn as positives in a step; 0 for all.
    """

    positives: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class RaexmcSettings(RunSettings):
    """RAE-XMC: one encoder for documents and labels, and a memory of both that answers."""

    fit: RaexmcFit = RaexmcFit()
    losses: RaexmcLoss = RaexmcLoss()
    mining: RaexmcMining = RaexmcMining()
    batches: RaexmcBatches = RaexmcBatches()


@dataclass(frozen=True, kw_only=True)
class EncoderRequest(EncoderSettings):
    """How texts become vectors, the encoder chosen where none is given.

    Args:
        encoder: as for every recipe; when not given, ``minilm``, or ``static`` where there is no time for a third of a
            pass with a transformer, or for a tenth where ``static`` is joined with it.
    """

    encoder: str | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class FitRequest(FitSettings):
    """How long and how fast a model is fitted, chosen where it is not given.

    Args:
        epochs: passes over the training documents; chosen when not given.
        batch_size: documents in a step; when not given, 32 to 512, by the number of documents.
        max_minutes: end within this time, reading and saving included; 60 when not given.
    """

    epochs: Count | None = None  # type: ignore[assignment]
    batch_size: Count | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LossRequest(UnidecLoss):
    """The loss of UniDEC, its share of the dual encoder chosen where it is not given.

    Args:
        encoder_weight: share of the dual encoder in the loss; 0 for a transformer and 0.5 for ``static`` if not given.
    """

    encoder_weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class MemoryRequest(CompanionMemory):
    """What answers beside the encoder, chosen where it is not given.

    Args:
        companion: as for UniDEC; when not given, with 500 validation documents to weigh it: ``static-unidec`` beside a
            transformer where two passes take at most a fifth of the time, else ``static`` where it takes a third.
        documents_by: as for UniDEC; when not given, the ``companion`` where encoding all documents would take the
            transformer more than three tenths of the time.
        linear: as for UniDEC; when not given, where it takes at most a fifth of the time, and 500 validation documents
            weigh it.
    """

    memory: bool = True
    companion: Literal["none", "static", "static-unidec"] | None = None  # type: ignore[assignment]
    documents_by: Literal["encoder", "companion"] | None = None  # type: ignore[assignment]
    linear: bool | None = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for where no recipe is named: what was given, the rest to be chosen by data, time and device.

    `recipes.auto.choose` answers it with the settings of UniDEC, or of RAE-XMC where ``static`` with a memory is to be
    trained and nothing is given that only UniDEC has.
    """

    encoding: EncoderRequest = EncoderRequest()
    fit: FitRequest = FitRequest()
    mining: UnidecMining = UnidecMining()
    batches: UnidecBatches = UnidecBatches()
    losses: LossRequest = LossRequest()
    heads: HeadSettings = HeadSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    voting: MemoryRequest = MemoryRequest()
