//! Batches: tensors along a first dimension, put together and taken apart.

use std::ops::Range;

use super::{Tensor, TensorData, element_count};

impl TensorData {
    /// Some of the elements; `None` if there are not as many.
    fn part(&self, range: Range<usize>) -> Option<TensorData> {
        Some(match self {
            TensorData::F32(values) => TensorData::F32(values.get(range)?.to_vec()),
            TensorData::F16(values) => TensorData::F16(values.get(range)?.to_vec()),
            TensorData::I8(values) => TensorData::I8(values.get(range)?.to_vec()),
            TensorData::U8(values) => TensorData::U8(values.get(range)?.to_vec()),
            TensorData::I32(values) => TensorData::I32(values.get(range)?.to_vec()),
            TensorData::I64(values) => TensorData::I64(values.get(range)?.to_vec()),
            TensorData::Bool(values) => TensorData::Bool(values.get(range)?.to_vec()),
        })
    }

    /// Adds elements of the same type at the end; `None` if they are of another.
    fn extend(&mut self, other: &TensorData) -> Option<()> {
        match (self, other) {
            (TensorData::F32(values), TensorData::F32(more)) => values.extend_from_slice(more),
            (TensorData::F16(values), TensorData::F16(more)) => values.extend_from_slice(more),
            (TensorData::I8(values), TensorData::I8(more)) => values.extend_from_slice(more),
            (TensorData::U8(values), TensorData::U8(more)) => values.extend_from_slice(more),
            (TensorData::I32(values), TensorData::I32(more)) => values.extend_from_slice(more),
            (TensorData::I64(values), TensorData::I64(more)) => values.extend_from_slice(more),
            (TensorData::Bool(values), TensorData::Bool(more)) => values.extend_from_slice(more),
            _ => return None,
        }
        Some(())
    }
}

impl Tensor {
    /// One item of a batch, itself a batch of one; `None` beyond the first dimension's end.
    pub fn batch_item(&self, index: usize) -> Option<Tensor> {
        let (count, rest) = self.shape.split_first()?;
        if index >= *count {
            return None;
        }
        let size = element_count(rest)?;
        let start = index.checked_mul(size)?;
        let data = self.data.part(start..start.checked_add(size)?)?;
        Some(Tensor { shape: [&[1][..], rest].concat(), data })
    }

    /// Tensors behind each other along the first dimension; `None` of none, and of such as differ in type or in another
    /// dimension.
    pub fn concatenated(tensors: &[Tensor]) -> Option<Tensor> {
        let (first, others) = tensors.split_first()?;
        let mut whole = first.clone();
        for other in others {
            let (count, rest) = other.shape.split_first()?;
            if whole.shape.get(1..)? != rest {
                return None;
            }
            whole.data.extend(&other.data)?;
            whole.shape[0] = whole.shape[0].checked_add(*count)?;
        }
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn batches_are_put_together_and_taken_apart() {
        let types =
            [DType::Float32, DType::Float16, DType::Int8, DType::UInt8, DType::Int32, DType::Int64, DType::Bool];
        for dtype in types {
            let items: Vec<Tensor> = (1..4).map(|seed| Tensor::seeded(dtype, vec![1, 2, 3], seed).unwrap()).collect();
            let whole = Tensor::concatenated(&items).unwrap();
            assert_eq!((whole.shape(), whole.dtype()), (&[3, 2, 3][..], dtype));
            for (index, item) in items.iter().enumerate() {
                assert_eq!(whole.batch_item(index).as_ref(), Some(item));
            }
            assert_eq!(whole.batch_item(3), None);
        }
        let tensor = |shape: Vec<usize>| Tensor::seeded(DType::Float32, shape, 1).unwrap();
        assert_eq!(Tensor::concatenated(&[]), None);
        assert_eq!(Tensor::concatenated(&[tensor(vec![1, 2]), tensor(vec![1, 3])]), None);
        let bytes = Tensor::seeded(DType::UInt8, vec![1, 2], 1).unwrap();
        assert_eq!(Tensor::concatenated(&[tensor(vec![1, 2]), bytes]), None);
        assert_eq!(tensor(vec![]).batch_item(0), None);
        assert_eq!(tensor(vec![0, 2]).batch_item(0), None);
    }
}
