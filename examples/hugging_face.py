"""Learned labels for a text classifier of Hugging Face: ``python examples/hugging_face.py``, about ten seconds.

A small BERT with random weights and made-up sentences, so that nothing is downloaded. A batch is the dict that a
tokenizer gives: it goes to the model as keyword arguments, and the step finds ``.logits`` in the output. The model is
trained by AdamW, which has no look-ahead of its own; therefore ``lookahead=`` is a rate.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification

import fastmeta

WORDS, TOPICS, LENGTH = 60, 4, 12
PAD = 0


def sentences(topics: torch.Tensor) -> dict[str, torch.Tensor]:
    """As a tokenizer gives them: of 6 to 12 words, six in ten of which belong to the topic, with padding and a mask."""
    shape = len(topics), LENGTH
    of_topic = 1 + topics[:, None] * 10 + torch.randint(10, shape)
    words = torch.where(torch.rand(shape) < 0.6, of_topic, torch.randint(1, WORDS, shape))
    mask = (torch.arange(LENGTH) < torch.randint(6, LENGTH + 1, (len(topics), 1))).long()
    return {"input_ids": torch.where(mask.bool(), words, PAD), "attention_mask": mask}


def rows(batch: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: t[index] for name, t in batch.items()}


def main(epochs: int = 12) -> fastmeta.MetaStep:
    torch.manual_seed(0)
    topic, clean_topic, test_topic = (torch.randint(TOPICS, (count,)) for count in (1200, 200, 400))
    train, clean, test = map(sentences, (topic, clean_topic, test_topic))
    noisy = torch.where(torch.rand(1200) < 0.4, torch.randint(TOPICS, (1200,)), topic)

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vocabulary = {"vocab_size": WORDS, "num_labels": TOPICS, "pad_token_id": PAD}
    model = BertForSequenceClassification(BertConfig(**vocabulary, **size, initializer_range=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    labels = fastmeta.InstanceLabels(noisy, num_classes=TOPICS, target_prob=0.4)
    step = fastmeta.MetaStep(model, labels, optimizer, lookahead=0.1, unique_index=True)
    for _ in range(epochs):
        for index in torch.randperm(1200).split(100):
            step((rows(train, index), index), (clean, clean_topic))

    model.eval()
    with torch.no_grad():
        accuracy = (model(**test).logits.argmax(1) == test_topic).float().mean()
    given, learned = ((y == topic).float().mean() for y in (noisy, labels.probs().argmax(1)))
    print(f"{accuracy:.1%} of the test sentences right; labels right: {given:.1%} as given, {learned:.1%} learned")
    return step


if __name__ == "__main__":
    main()
